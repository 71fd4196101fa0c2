"""IncreLoRA (Zhang et al. 2023, arXiv 2308.12043): adapters that start with few ranks and grow where it matters most.

    config = IncreLoraConfig(r=32, lora_alpha=16, target_modules="all-linear")     # r: the most ranks of one module
    model = get_increlora_model(base_model, config)
    optimizer = GrowingAdamW(parameters, lr=1e-3, new_warmup=50)
    plan = plan_growth(total_steps=1000, modules=len(increlora_layers(model)), target_rank=8)
    growth = RankGrowth(model, optimizer, plan)
    ...loss.backward(); growth.before_step(); optimizer.step(); growth.step()
    folded_factors(model)                                                         # plain LoRA factors, to export

The layer: y = W0 x + dW x with dW = alpha / (n + 1e-5) B diag(E) A, n the module's current number of ranks, E zero at
the start and A, B ~ N(0, 0.02). A module's importance is s = sum |dW * d loss / d dW| / sqrt(numel), smoothed like
AdaLoRA's (Zhang et al. 2023, Eq. 5 and 6): I <- b1 I + (1 - b1) s, U <- b2 U + (1 - b2) |s - I|, and its score I * U.
After a warm-up, at every interval, the most important modules gain ranks until the total is target_rank * modules.
Reserve ranks train their A and B ahead ("advance learning"), with E fixed at 1e-5. New parameters have a warm-up of
their own ("restart warm-up"), and a regulariser 0.1 (|A A^T - I| + |B^T B - I|), the mean over modules, keeps factors
near orthogonal. Formulas and constants are those of the authors' code, loralib/increlora.py: `SVDLinear` (the layer and
its importance) and `RankAllocator` (growth; as many ranks in reserve as a growth adds, half of the target rank).

Two things differ from the authors' code, and why:

- Parameters are made once, for the most ranks that a module may come to have, and ranks in waiting have exact zeros for
  gradients: a parameter that appears in mid-training cannot be sharded by DeepSpeed ZeRO.
- The last growth adds what is left and no more, so that the total meets the target exactly; theirs ends only if it
  happens to.

In files: `plan.py` (when which modules grow), `layer.py`, `optimizer.py` and `growth.py`.
"""
