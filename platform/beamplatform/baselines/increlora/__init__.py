"""IncreLoRA (Zhang et al. 2023, arXiv 2308.12043): adapters that start with few ranks and grow where it matters most.

    config = IncreLoraConfig(r=32, lora_alpha=16, target_modules="all-linear")     # r: the largest rank of a module
    model = get_increlora_model(base_model, config)
    optimizer = GrowingAdamW(parameters, lr=1e-3, new_warmup=50)
    plan = plan_growth(total_steps=1000, modules=len(increlora_layers(model)), target_rank=8)
    growth = RankGrowth(model, optimizer, plan)
    ...loss.backward(); growth.before_step(); optimizer.step(); growth.step()
    folded_factors(model)                                                         # plain LoRA factors, to export

A layer computes y = W0 x + dW x with dW = alpha / (n + 1e-5) B diag(E) A, where n is the module's current number of
ranks. At the start E is zero and A, B ~ N(0, 0.02).

In every step a module's importance is s = sum |dW * d loss / d dW| / sqrt(numel). It is smoothed like AdaLoRA's (Zhang
et al. 2023, Eq. 5 and 6): I <- b1 I + (1 - b1) s and U <- b2 U + (1 - b2) |s - I|. The module's score is I * U. After a
warm-up, at every interval, the modules with the highest scores gain ranks, until the total is target_rank * modules.

Reserve ranks train their A and B before they are needed ("advance learning"), with E fixed at 1e-5. New parameters have
their own warm-up ("restart warm-up"). A regulariser 0.1 (|A A^T - I| + |B^T B - I|), averaged over modules, keeps the
factors nearly orthogonal.

Formulas and constants are those of the authors' code, loralib/increlora.py: `SVDLinear` (the layer and its importance)
and `RankAllocator` (growth). A module has as many reserve ranks as a growth adds, which is half of the target rank.

Two things differ from the authors' code:

- Parameters are created once, with the largest rank that a module may reach. Ranks that are not yet used get gradients
  of exactly zero. The reason is that DeepSpeed ZeRO cannot shard a parameter that is created during training.
- The last growth adds only the ranks that are still missing, so that the total meets the target exactly. The authors'
  growth ends only if the total happens to meet the target.

Files: `plan.py` (which modules grow, and when), `layer.py`, `optimizer.py` and `growth.py`.
"""
