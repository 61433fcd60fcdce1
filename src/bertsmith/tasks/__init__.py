"""What is taught: one file a task, from rows in to answers out."""
