"""ReLoRA (Lialin et al. 2023, arXiv 2307.05695): a sequence of low-rank updates, merged into the weights one by one.

    model = get_peft_model(base_model, LoraConfig(...))
    schedule = RestartSchedule(total_steps=3000, restarts=(1000, 2000))
    relora = ReLora(model, optimizer, schedule.restarts, seed=0)
    for step, batch in enumerate(batches):
        ...set the learning rate to peak * schedule.factor(step)...
        optimizer.step()
        relora.step()                       # True when it merged

Algorithm 1 of the paper does the following after every K updates:

- The adapter is merged: W <- W + scaling * B A.
- A is drawn anew (Kaiming-uniform, a = sqrt(5)), and B is set to zero.
- Most of the adapter's optimizer state is pruned.
- The learning rate starts again from 0 and returns to one cosine over the whole run ("jagged cosine", Figure 2).

As rank(X + Y) <= rank(X) + rank(Y), the total update has a rank of up to (k + 1) r after k merges.

Defaults are those of the authors' code (torchrun_main.py, peft_pretraining/training_utils.py). Pruning sets moments
below the 90th percentile of magnitude to zero, or a random 99.9 % of all moments. The first warm-up takes 500 steps,
and each later warm-up takes 100 steps. The cosine ends at 0.1 of the peak.

Files: `schedule.py` (restarts and the learning rate), `moments.py` (pruning of moments) and `merging.py`.
"""
