"""Baselines that PEFT does not implement: MiLoRA, ReLoRA and IncreLoRA.

Each is a small package that needs only torch, PEFT and `beamlora`, so that it can be used outside this project.
`beamplatform.methods` imports these packages. They import nothing from the rest of `beamplatform`.
"""
