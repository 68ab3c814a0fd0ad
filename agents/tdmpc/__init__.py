"""TD-MPC (Hansen, Wang and Su, 2022, arXiv 2203.04955) on state observations.

`config` is free of heavy imports, so that a command line can show its defaults quickly;
`world_model`, `planner` and `agent` need torch.
"""
