"""Mistakes that were once made in reading models and conversations, and in what was reckoned of them."""

from tests.mutations.mutation import Mutation

CHAT, STOPS, READING, DRY_RUN, PEFT = (
    f"tests/{name}.py"
    for name in (
        "runs/test_chat",
        "experiments/test_stops",
        "model/test_hf_reading",
        "runs/test_dry_run",
        "model/test_peft",
    )
)


def row(id: str, file: str, find: str, replace: str, tests: str, reason: str) -> Mutation:
    """`tests` is "FILE name name …", the names without their "test_"."""
    path, *names = tests.split()
    return Mutation(f"mended-{id}", 0, file, find, replace, tuple(f"{path}::test_{name}" for name in names), reason)


ROWS: tuple[Mutation, ...] = (
    row(
        "response-ends-at-the-eos-alone",
        "rlhf_jax/runs/chat.py",
        "if token == eos or token in stops)",
        "if token == eos)",
        f"{CHAT} tokens_and_masks_are_those_of_the_template",
        "Gemma and Phi-3 would learn what comes after the end of their turn, and no policy samples",
    ),
    row(
        "response-ends-at-the-last-stop",
        "rlhf_jax/runs/chat.py",
        "last = next((place for place, token in enumerate(ids)",
        "last = next((place for place, token in reversed(list(enumerate(ids)))",
        f"{CHAT} of_two_stops_the_first_ends_a_response",
        "a policy would have stopped before",
    ),
    row(
        "response-ends-in-the-eos-whatever-stopped-it",
        "rlhf_jax/runs/chat.py",
        "if last is None else ids[: last + 1]",
        "if last is None else [*ids[:last], eos]",
        f"{CHAT} of_two_stops_the_first_ends_a_response",
        "the stop that a policy samples is another",
    ),
    row(
        "mask-knows-the-eos-alone",
        "rlhf_jax/runs/chat.py",
        "np.isin(ids[turn], [*stops, tokenizer.eos_token_id])",
        "np.isin(ids[turn], [tokenizer.eos_token_id])",
        f"{CHAT} tokens_and_masks_are_those_of_the_template",
        "the newline after an earlier turn would be learnt",
    ),
    row(
        "mask-refuses-an-eos-at-the-end-of-all",
        "rlhf_jax/runs/chat.py",
        'after = after.removesuffix(tokenizer.eos_token or "")',
        "after = str(after)",
        f"{CHAT} tokens_and_masks_are_those_of_the_template",
        "Phi-3's template, with an earlier answer to learn, is taken for one that changes turns",
    ),
    row(
        "template-error-escapes",
        "rlhf_jax/runs/chat.py",
        "    except Exception as error:  # a template",
        "    except OSError as error:  # a template",
        f"{CHAT} what_a_template_refuses_is_a_user_error",
        "a traceback of jinja for a conversation that the template does not take",
    ),
    row(
        "assistant-first-escapes",
        "rlhf_jax/runs/chat.py",
        "        if index == 0:\n",
        "        if index < 0:\n",
        f"{CHAT} a_mask_of_a_conversation_that_the_assistant_begins_is_refused",
        "the message would be about a conversation of no message",
    ),
    row(
        "demonstrations-without-stops",
        "rlhf_jax/runs/data.py",
        "encode_response(tokenizer, example.prompt, example.completion, stops=stops)",
        "encode_response(tokenizer, example.prompt, example.completion)",
        f"{CHAT} tokens_and_masks_are_those_of_the_template",
        "the stops are lost on the way",
    ),
    row(
        "earlier-turns-without-stops",
        "rlhf_jax/runs/data.py",
        "assistant_mask(tokenizer, example.prompt, stops=stops)",
        "assistant_mask(tokenizer, example.prompt)",
        f"{CHAT} tokens_and_masks_are_those_of_the_template",
        "the stops are lost on the way",
    ),
    row(
        "pairs-without-stops",
        "rlhf_jax/runs/data.py",
        "encode_text(tokenizer, pair.prompt, text, stops=stops)",
        "encode_text(tokenizer, pair.prompt, text)",
        f"{CHAT} a_reward_model_reads_what_its_policy_wrote",
        "a reward model would read another end than the policy writes",
    ),
    row(
        "scores-without-stops",
        "rlhf_jax/runs/data.py",
        "answer = encode_response(tokenizer, prompt, response, stops=stops)",
        "answer = encode_response(tokenizer, prompt, response)",
        f"{CHAT} a_reward_model_reads_what_its_policy_wrote",
        "a reward model would score another text than it was trained on",
    ),
    row(
        "rankings-without-stops",
        "rlhf_jax/runs/judged_rows.py",
        "encode_text(tokenizer, comparison.prompt, text, stops=stops)",
        "encode_text(tokenizer, comparison.prompt, text)",
        f"{CHAT} a_reward_model_reads_what_its_policy_wrote",
        "the stops are lost on the way",
    ),
    row(
        "ratings-without-stops",
        "rlhf_jax/runs/judged_rows.py",
        "encode_text(tokenizer, rating.prompt, rating.response, stops=stops)",
        "encode_text(tokenizer, rating.prompt, rating.response)",
        f"{CHAT} a_reward_model_reads_what_its_policy_wrote",
        "the stops are lost on the way",
    ),
    row(
        "sft-without-stops",
        "experiments/sft.py",
        "learn=cfg.learn, stops=model.eos_ids",
        "learn=cfg.learn",
        f"{STOPS} sft_learns_up_to_the_policys_stop",
        "the script knows the model and does not say",
    ),
    row(
        "reward-model-without-stops",
        "experiments/reward_model.py",
        "load(cfg, kind, tokenizer, axes, model.eos_ids)",
        "load(cfg, kind, tokenizer, axes)",
        f"{STOPS} a_reward_model_is_trained_and_normalised_on_texts_up_to_the_policys_stop",
        "the script knows the model and does not say",
    ),
    row(
        "normalised-without-stops",
        "experiments/reward_model.py",
        "reference_responses(cfg, tokenizer, rows, model.eos_ids)",
        "reference_responses(cfg, tokenizer, rows)",
        f"{STOPS} a_reward_model_is_trained_and_normalised_on_texts_up_to_the_policys_stop",
        "mean and deviation of other texts than are scored",
    ),
    row(
        "scorer-without-stops",
        "experiments/reward_scores.py",
        "window=window, stops=model.eos_ids)",
        "window=window)",
        f"{STOPS} a_saved_reward_model_reads_what_it_was_trained_on",
        "PPO would score other texts than the reward model was trained on",
    ),
    row(
        "heads-read-in-one-box",
        "rlhf_jax/model/hf/tensors.py",
        'apart += [x for x in order[: max(partial, default=0)] if x != "c"]',
        "apart += order[:0]",
        f"{READING} tensors_that_hold_several_parameters_are_read_once",
        "q, k and v of GPT-NeoX each read all three",
    ),
    row(
        "a-box-for-every-head",
        "rlhf_jax/model/hf/tensors.py",
        "slice(piece[x][0] - spans[x][0], piece[x][1] - spans[x][0])",
        "slice(piece[x][0], piece[x][1])",
        f"{READING} tensors_that_hold_several_parameters_are_read_once",
        "a device's heads lie where they lie in the file",
    ),
    row(
        "adapter-of-everything",
        "rlhf_jax/runs/reckon.py",
        'lora.Lora(rank=told["r"], targets=",".join(targets))',
        'lora.Lora(rank=told["r"])',
        f"{DRY_RUN} an_adapter_leads_to_its_base",
        "an adapter of q and v is reckoned as one of every matrix",
    ),
    row(
        "folder-taken-for-the-hubs",
        "rlhf_jax/runs/reckon.py",
        "(hf_files.HUB_NAME.fullmatch(name) and not ours)",
        "hf_files.HUB_NAME.fullmatch(name)",
        f"{DRY_RUN} a_name_of_two_parts_may_be_a_folder_yet_to_be_made",
        "a run that is yet to write runs/model is looked for on the hub",
    ),
    row(
        "hubs-taken-for-a-folder",
        "rlhf_jax/runs/reckon.py",
        "ours = bool(top) and (Path(*top).is_dir() or",
        "ours = bool(top) or (Path(*top).is_dir() or",
        f"{DRY_RUN} a_name_of_two_parts_may_be_a_folder_yet_to_be_made",
        "no reward model of the hub would be reckoned",
    ),
    row(
        "weights-fetched-twice",
        "rlhf_jax/model/hf/files.py",
        'UNWANTED = ["*/*", "consolidated*.safetensors"]',
        'UNWANTED = ["*/*"]',
        "tests/model/test_hf.py a_hub_name_fetches_only_data",
        "Mistral's repositories hold their weights a second time",
    ),
    row(
        "alpha-rounded",
        "rlhf_jax/model/peft.py",
        '"lora_alpha": int(settings.alpha) if settings.alpha == int(settings.alpha) else settings.alpha',
        '"lora_alpha": round(settings.alpha)',
        f"{PEFT} an_alpha_that_is_no_whole_number_comes_back",
        "a saved adapter of alpha 5.5 would be one of 6",
    ),
    row(
        "output-matrix-kept-beside-a-score",
        "rlhf_jax/runs/models.py",
        "{path: x for path, x in base.items() if path in own},",
        "dict(base),",
        "tests/experiments/test_lora.py a_reward_adapter_is_opened_without_the_output_matrix_of_its_base",
        "a reward model with a matrix that no checkpoint of it holds",
    ),
)
