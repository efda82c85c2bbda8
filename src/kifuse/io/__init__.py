"""Files that are whole or not there at all: text, JSON, tensors, folders, their hashes and their lock."""
