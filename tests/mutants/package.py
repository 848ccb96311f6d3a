"""Faults to plant in the Python layer; see table.py for what a text and tests are."""

from __future__ import annotations

from .table import Mutant

_RESUME = "tests/train/test_resume.py"
_LOOP = "tests/train/test_loop.py"
_VRF = "tests/ensemble/test_vrf.py tests/ensemble/test_vrf_options.py"
_SELECT = "tests/ensemble/test_output_select.py"
_RESULTS = "tests/evaluate/test_results.py"
_LINES = "tests/evaluate/test_jsonlines.py"
_FOLDERS = "tests/data/test_files.py tests/data/test_classes.py tests/data/test_images.py"
_SCREENING = "tests/ops/test_screening.py"

MUTANTS = [
    # Resuming
    Mutant(
        "a later stage resumes at the step of the whole run",
        "robustft/train/loop.py",
        'start = self._meta["step"] - passed if load is not None else 0',
        'start = self._meta["step"] if load is not None else 0',
        f"{_RESUME} -k bits",
    ),
    Mutant(
        "the optimiser forgets its moments on resume",
        "robustft/train/state.py",
        '"state": _moments(tensors, _parameters(optimizer)),',
        '"state": {},',
        f"{_RESUME} -k bits",
    ),
    Mutant(
        "reference pairs begin anew on resume",
        "robustft/train/feed.py",
        "begun = order.passes_before(start)",
        "begun = 0",
        f"{_RESUME} -k bits",
    ),
    Mutant(
        "an incomplete last step counts as a whole one",
        "robustft/train/order.py",
        "return epochs * self.batches_per_epoch + place * self.accum",
        "return step * self.accum",
        "tests/train/test_order.py tests/train/test_batches.py",
    ),
    Mutant(
        "a second stage sees the draws of the first",
        "robustft/train/order.py",
        "now = self.first_epoch + passed",
        "now = passed",
        "tests/train/test_order.py tests/train/test_batches.py",
    ),
    Mutant(
        "random masks are the same at every step",
        "robustft/train/loop.py",
        'torch.manual_seed(mix(config.seed, "step", done, drawer))',
        'torch.manual_seed(mix(config.seed, "step", drawer))',
        f"{_LOOP} -k 'mask or adapter or random'",
    ),
    Mutant(
        "a log keeps records of steps that are made anew",
        "robustft/train/log.py",
        'if r.get("step", 0) <= resumed_at]',
        'if r.get("step", 0) < 10**9]',
        _RESUME,
    ),
    # Checkpoints and run folders
    Mutant(
        "a checkpoint's files are not compared with their checksums",
        "robustft/train/checkpoint.py",
        'if not file.is_file() or _sha256(file) != meta["files"][name]:',
        "if not file.is_file():",
        f"{_RESUME} -k 'byte or damaged'",
    ),
    Mutant(
        "the checksum of trainer.json is not looked at",
        "robustft/train/checkpoint.py",
        'if meta.pop("sha256", None) != _seal(meta) or not _well_formed(meta):',
        'if meta.pop("sha256", None) is None or not _well_formed(meta):',
        f"{_RESUME} -k 'byte or damaged or changed'",
    ),
    Mutant(
        "a classifier's checksum leaves its metadata out",
        "robustft/models/tensor_files.py",
        "text = json.dumps([digest(tensors), description], sort_keys=True)",
        "text = digest(tensors)",
        "tests/models/test_heads.py -k changed",
    ),
    Mutant(
        "one checkpoint more than asked for is kept",
        "robustft/train/checkpoint.py",
        "for old in complete(run_dir)[:-keep]:",
        "for old in complete(run_dir)[: -keep - 1]:",
        f"{_RESUME} -k 'checkpoints or keep'",
    ),
    Mutant(
        "best weights of a later step are taken over",
        "robustft/train/best.py",
        "if found <= step:",
        "if found >= 0:",
        f"{_RESUME} -k best",
    ),
    Mutant(
        "of equally good weights the last are kept",
        "robustft/train/best.py",
        "not accuracy > self.accuracy",
        "not accuracy >= self.accuracy",
        f"{_LOOP} -k best",
    ),
    Mutant(
        "two runs may hold run.lock",
        "robustft/train/lock.py",
        "run_dir / NAME",
        'run_dir / f"{os.getpid()}.lock"',
        f"{_RESUME} -k writer",
    ),
    Mutant(
        "a run takes a folder's temporary files of others for its own",
        "robustft/atomic.py",
        'if found is None or not written(found["target"]):',
        "if found is None:",
        f"{_RESUME} -k swept",
    ),
    Mutant(
        "a run of other labels may be resumed",
        "robustft/train/fingerprint.py",
        '"labels": digest_texts(data.labels.tolist()),',
        '"labels": None,',
        _RESUME,
    ),
    Mutant(
        "a run of other weights may be resumed",
        "robustft/train/fingerprint.py",
        'model["weights"] = digest(clip.model)',
        'model["weights"] = "the same"',
        _RESUME,
    ),
    # The loop
    Mutant(
        "batches of a step count alike, whatever their size",
        "robustft/train/step.py",
        'share = len(batch["label"]) / total',
        "share = 1 / len(batches)",
        f"{_LOOP} -k accumulat",
    ),
    Mutant(
        "the learning rate is that of the next step",
        "robustft/train/loop.py",
        "rate = cosine(step - 1, lr",
        "rate = cosine(step, lr",
        f"{_LOOP} tests/train/test_schedule.py -k 'rate or warm or log or stage'",
    ),
    Mutant(
        "weights that are not finite are saved",
        "robustft/train/finite.py",
        "if not self._finite([local_of(tensor) for tensor in parameters]):",
        "if self._finite([local_of(tensor) for tensor in parameters]) is None:",
        f"{_LOOP} {_RESUME} -k finite",
    ),
    Mutant(
        "the caller's random state is not put back",
        "robustft/train/loop.py",
        "            torch.set_rng_state(state)\n",
        "",
        f"{_LOOP} -k random",
    ),
    Mutant(
        "validation counts the images that stand in for damaged ones",
        "robustft/train/validate.py",
        "hits[whole].sum(), whole.sum()",
        "hits.sum(), whole.sum()",
        "tests/data/test_pictures.py",
    ),
    Mutant(
        "every caption is of the first template",
        "robustft/data/captions.py",
        "return draw % self.tokens.shape[1]",
        "return 0",
        "tests/data/test_text_files.py tests/data/test_images.py tests/data/test_classes.py "
        "tests/train/test_batches.py tests/data/test_digits.py",
    ),
    # Accuracies
    Mutant(
        "a row of NaN predicts its first NaN",
        "robustft/accuracy.py",
        "return index.masked_fill(~torch.isfinite(highest), NONE)",
        "return index",
        "tests/evaluate/test_metrics.py",
    ),
    Mutant(
        "a confidence on an edge counts in the bin above",
        "robustft/evaluate/calibration.py",
        "which = ((confidence * bins).ceil().long() - 1).clamp(0, bins - 1)",
        "which = (confidence * bins).long().clamp(0, bins - 1)",
        "tests/evaluate/test_metrics.py",
    ),
    Mutant(
        "rows of damaged images stay in the outputs",
        "robustft/evaluate/collect.py",
        "logits=together(logits[number])[rows],",
        "logits=together(logits[number]),",
        "tests/evaluate/test_collect.py tests/data/test_pictures.py",
    ),
    Mutant(
        "a part of the classes keeps the labels of its own list",
        "robustft/data/datasets.py",
        "        other.labels = index[self.labels]\n",
        "",
        "tests/evaluate/test_roles.py tests/evaluate/test_suite.py",
    ),
    Mutant(
        "one class in common leaves no doubt of a role",
        "robustft/evaluate/roles.py",
        "    if found:\n",
        "    if len(found) > 1:\n",
        "tests/evaluate/test_roles.py tests/evaluate/test_suite.py",
    ),
    # Choosing
    Mutant(
        "of tied α the smallest is taken",
        "robustft/ensemble/select.py",
        "return Choice(alpha=max(tied)",
        "return Choice(alpha=min(tied)",
        _SELECT,
    ),
    Mutant(
        "one row of NaN rules an α out",
        "robustft/ensemble/select.py",
        "if bool((predicted == NONE).all()):",
        "if bool((predicted == NONE).any()):",
        _SELECT,
    ),
    Mutant(
        "something is chosen on a second test split",
        "robustft/ensemble/_checks.py",
        'outputs.split.strip().lower().startswith("test")',
        'outputs.split == "test"',
        _SELECT,
    ),
    Mutant(
        "of tied modulations the last is taken",
        "robustft/ensemble/vrf_select.py",
        "best = int(hits.argmax())",
        "best = len(hits) - 1 - int(hits[::-1].argmax())",
        _VRF,
    ),
    Mutant(
        "a share that is whole but for rounding is cut",
        "robustft/ensemble/vrf_select.py",
        "if abs(product - nearest) <= 4 * math.ulp(product):",
        "if product == nearest:",
        _VRF,
    ),
    Mutant(
        "rounding noise of equal distances is a spread",
        "robustft/ensemble/vrf_select.py",
        "if deviation > 1e-6 * largest:",
        "if deviation > 0:",
        _VRF,
    ),
    Mutant(
        "what both models get right is a failure of the zero-shot model",
        "robustft/ensemble/vrf_fit.py",
        "wrong = ~correct(train.logits_zeroshot, train.labels)",
        "wrong = torch.ones_like(right)",
        _VRF,
    ),
    Mutant(
        "the zero-shot model gets the fine-tuned model's temperature",
        "robustft/ensemble/vrf_fit.py",
        "solve(val.logits_finetuned, val.labels), solve(val.logits_zeroshot, val.labels)",
        "solve(val.logits_finetuned, val.labels), solve(val.logits_finetuned, val.labels)",
        _VRF,
    ),
    Mutant(
        "a masked class of a model without weight is NaN",
        "robustft/ensemble/output.py",
        "(s * x).masked_fill((s == 0) & (x == -math.inf), 0.0)",
        "s * x",
        f"{_SELECT} tests/ensemble/test_vrf_options.py",
    ),
    # Records
    Mutant(
        "an infinite number is written as JSON has none",
        "robustft/evaluate/results.py",
        "if isinstance(value, float) and not math.isfinite(value):",
        "if isinstance(value, float) and math.isnan(value):",
        _RESULTS,
    ),
    Mutant(
        "true is a number",
        "robustft/evaluate/results.py",
        "if isinstance(value, bool) or not isinstance(value, kinds):",
        "if not isinstance(value, kinds):",
        _RESULTS,
    ),
    Mutant(
        "half a line stays when the disk is full",
        "robustft/jsonlines.py",
        "                os.ftruncate(handle, end)\n",
        "                pass\n",
        _LINES,
    ),
    Mutant(
        "a line longer than a block is put together backwards",
        "robustft/jsonlines.py",
        "tail = os.read(handle, block) + tail",
        "tail = tail + os.read(handle, block)",
        _LINES,
    ),
    Mutant(
        "a whole line without its end is set aside",
        "robustft/jsonlines.py",
        '    _write(handle, b"\\n")\n    return size + 1',
        "    os.ftruncate(handle, size - len(half))\n    return size - len(half)",
        _LINES,
    ),
    Mutant(
        "the spread over seeds is that of a population",
        "robustft/report/table.py",
        "std = statistics.stdev(present)",
        "std = statistics.pstdev(present)",
        "tests/report/test_report.py tests/report/test_names.py",
    ),
    Mutant(
        "the OOD mean is over the sets that are there",
        "robustft/report/table.py",
        "if present and len(present) == len(found) else None",
        "if present else None",
        "tests/report/test_report.py tests/report/test_names.py",
    ),
    # Data
    Mutant(
        "every seed carves the same validation split",
        "robustft/data/folders.py",
        "(_CARVED, seed))",
        "(_CARVED, 0))",
        _FOLDERS,
    ),
    Mutant(
        "a small class has no row in the validation split",
        "robustft/data/datasets.py",
        "counts = [max(1, round(len(rows) * fraction)) for fraction in fractions[1:]]",
        "counts = [round(len(rows) * fraction) for fraction in fractions[1:]]",
        _FOLDERS,
    ),
    Mutant(
        "a validation folder is passed over",
        "robustft/data/folders.py",
        'carve = split != "test" and not (root / "val").is_dir()',
        'carve = split != "test"',
        _FOLDERS,
    ),
    Mutant(
        "hidden folders hold images",
        "robustft/data/folders.py",
        "and not _hidden(p, folder) and",
        "and",
        _FOLDERS,
    ),
    # Models
    Mutant(
        "a rebuilt head leaves the logit scale out",
        "robustft/models/heads.py",
        "self.set_head(weight * scale_of(self.clip))",
        "self.set_head(weight)",
        "tests/models/test_heads.py",
    ),
    Mutant(
        "merging leaves biases as they are",
        "robustft/models/adapter_set.py",
        'for name in (f"{site.linear}.weight", f"{site.linear}.bias"):',
        'for name in (f"{site.linear}.weight",):',
        "tests/models/test_adapter.py -k merge",
    ),
    Mutant(
        "dropping does not keep the mean",
        "robustft/models/adapter.py",
        "(torch.rand(shape, device=y.device) < keep).to(y.dtype) / keep",
        "(torch.rand(shape, device=y.device) < keep).to(y.dtype)",
        "tests/models/test_adapter.py -k drop",
    ),
    # The host's side of a search on a card
    Mutant(
        "a screened row's own rounding is not allowed for",
        "robustft/backends/search/interface.py",
        "residual = (centred - rounded).norm(dim=1) * (1 + WIDER) + TINY",
        "residual = 0 * norm",
        _SCREENING,
    ),
    Mutant(
        "padded rows are near to every query",
        "robustft/backends/search/banks.py",
        "into.numbers[NEAR, count:] = torch.inf",
        "into.numbers[NEAR, count:] = LOWEST",
        _SCREENING,
    ),
    Mutant(
        "a row that is rounded worse than its tile's usual row is taken for a usual one",
        "robustft/backends/search/banks.py",
        "(covered - level).square() / SHARE",
        "0 * level",
        _SCREENING,
    ),
    # Checkpoints of others
    Mutant(
        "a pickle may name any function of Python",
        "robustft/models/pickles.py",
        "str(found) not in _ALLOWED_STDLIB",
        "False",
        "tests/models/test_pickles.py -k refused",
    ),
    Mutant(
        "a tensor reaches beyond its storage",
        "robustft/models/torch_files.py",
        "or (count > 0 and reach > len(storage))",
        "",
        "tests/models/test_pickles.py -k reaches",
    ),
    Mutant(
        "the live weights stand for R-Adapter's average",
        "robustft/models/adapter_files.py",
        '("ema:" if averaged else "", "ema_")',
        '("", "ema_")',
        "tests/models/test_checkpoints.py -k release",
    ),
    Mutant(
        "an exported configuration forgets QuickGELU",
        "robustft/models/export.py",
        'config["quick_gelu"] = uses_quick_gelu(clip)',
        "pass",
        "tests/cli/test_exchange.py -k quickgelu",
    ),
    Mutant(
        "an exported VRF takes the root of every distance",
        "robustft/ensemble/standalone.py",
        'return squared if self.settings["squared"] else squared.sqrt()',
        "return squared.sqrt()",
        "tests/ensemble/test_vrf_export.py -k plain_module",
    ),
    # Triton
    Mutant(
        "moving sums to the mean forgets what they are about",
        "kernels/dive_merge.py",
        "moved += tl.where(mask, 2 * delta * (count * delta - s), 0.0)",
        "moved += tl.where(mask, 2 * delta * (count * delta), 0.0)",
        "triton: tests/ops/test_dive.py",
    ),
]
