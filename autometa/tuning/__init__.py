"""The search: sampler, budget, tuner."""
