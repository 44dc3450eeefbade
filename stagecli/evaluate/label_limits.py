"""What bounds the training of label networks, and their version. No torch.

By these limits it takes a minute or two on one core, whatever the data set.
"""

VERSION = 1  # of what is cached: raise it when the network or its training changes
MIN_CLIPS_PER_CLASS = 20  # on average; with fewer, a network learns the clips by heart
MOST_FRAMES = 2_500_000  # of spectrograms, over all steps
MOST_PASSES = 30  # over the clips
MOST_SAMPLES = 2**27  # of audio, which is held in memory: half a gigabyte
FEW_CLIPS = 2000  # up to which clips longer than the crop give several crops
MOST_CROPS = 4  # of a clip
