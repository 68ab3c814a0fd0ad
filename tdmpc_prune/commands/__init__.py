"""What `tdmpc-prune` can do: a module a verb, with its settings and `run`.

Importing a module is quick, since help must be: heavy imports wait inside `run`.
"""
