"""The Hugging Face Hub as a place to read from: a connection, repositories pinned to a commit, files read by range."""
