"""Reads run directories, without torch, and turns them into numbers, sentences and pictures."""
