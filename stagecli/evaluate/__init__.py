"""`stagecli evaluate`: scores of runs on real clips, or of one folder of audio against another.

command, flags, chosen, limits   the command: its options, its metrics, its output, --fail-if
runs, job, differences     checkpoints of runs -> documents kept in the run, and differences
data                       the run's own clips, or others that the user names
sr                         restored clips of a split, scored pair by pair
inputs                     files of the user's, restored and scored against their references
t2a, samples, label_scores samples for the captions of a split, scored as a set
folders, folder_files, folder_pairs, folder_sets, clip_warnings   audio from anywhere
pairs, sets, classifier, clap   scores of clip pairs, of sets, by label, against prompts
pair_scoring, workers      scores of pairs of files, several at once
embed, ledger              embeddings and scores that are computed once and kept
label_network, label_training   a network that reads labels off audio; trained once per data set
averages                   means over clips with their intervals
titles, figures, tables, file_table, pages   what is printed: the terminal; CSV and Markdown
score_tables, score_html   a document as one table; on the page of `inspect-regime`
"""
