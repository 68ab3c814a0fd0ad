"""`python -m envs` lists the tasks, one a line."""

from envs import task_names

print("\n".join(task_names()))
