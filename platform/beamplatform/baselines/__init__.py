"""Baselines that PEFT lacks, built here: MiLoRA, ReLoRA, IncreLoRA.

Each is a small package that needs torch, PEFT and `beamlora` alone, so that it can be lifted out:
the rest of `beamplatform` uses them (`beamplatform.methods`), and none of them uses it.
"""
