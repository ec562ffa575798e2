"""Sweeps: settings × seeds of one script, each point a process of its own, and one comparison of all of them.

    python -m rlhf_jax.runs.sweep experiments/ppo.py experiments/sweeps/kl.yaml --dry-run
    python -m rlhf_jax.runs.sweep experiments/ppo.py experiments/sweeps/kl.yaml --jobs 2

`spec` reads the YAML, `plan` makes every point of it by the script's own parser, `execute` runs them, `results` reads what
they logged, `compare` reckons, `page` shows. `in_process` does the same with a function of a notebook instead of a script.
"""
