"""`--dry-run`: what a run would take, told from the configuration and from config.json alone.

No weights are read, nothing is compiled or trained, and the mesh may have more devices than this machine. Parameters,
optimizer state, gradients and cache are exact by shape and sharding rule; activations are what `jax.vjp` would keep
(`model.cost`), their share of each device by its rows alone, so an upper bound where `tensor` cuts them too. The scripts keep
what they opened alive beside the training state, which an update donates: both are counted, and what a compiler adds or
saves is not.

A module a script, with `plan(cfg)`; what a plan is and how it is told, `plan`; what plans are made of, `reckon`; what scripts
share that train one model on given texts, `given`, and that sample, `sampled`.
"""
