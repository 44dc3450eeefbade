"""What people see in a terminal: tables, errors, and views of runs, live and as text."""
