"""What is asked for, of what, with which means: tasks, plans and their ledger."""
