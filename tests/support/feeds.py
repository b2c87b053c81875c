"""Control-plane feeds of the real ones' shape and size, made from a seed.

The shape is that of the public feeds in February 2026: about thirty keys a row, four rows in
five private, a third of the public ones not language models.
"""

import random

PRIVATE = "[private chute]"
_MAKERS = ("northwind", "quarry", "lumen-ai", "harbor", "tallgrass")
_FAMILIES = ("Cedar", "Otter", "Basalt", "Meridian", "Sparrow")


def utilization_row(name, *, active=4, current=0.5, u5=0.5, u15=0.5, u1h=0.5, r5=0.0, r15=0.0,
                    r1h=0.0, scalable=False, scale_allowance=0, **other):
    """Return one row with the keys the router reads and some that it does not."""
    return {
        "chute_id": f"id-of-{name}", "name": name, "timestamp": "2026-02-18T05:48:08.568123",
        "utilization_current": current, "utilization_5m": u5, "utilization_15m": u15,
        "utilization_1h": u1h, "rate_limit_ratio_5m": r5, "rate_limit_ratio_15m": r15,
        "rate_limit_ratio_1h": r1h, "total_requests_5m": 120.5, "completed_requests_5m": 118.25,
        "instance_count": active, "action_taken": "no_action", "target_count": active,
        "effective_multiplier": None, "total_instance_count": active,
        "active_instance_count": active, "scalable": scalable,
        "scale_allowance": scale_allowance, **other}


def public_names(count=96):
    """Return the names of `count` public chutes, two in three served confidentially."""
    return [f"{_MAKERS[n % 5]}/{_FAMILIES[n // 5 % 5]}-{n}B" + ("-TEE" if n % 3 else "")
            for n in range(1, count + 1)]


def utilization_feed(rows=538, public=96, seed=7):
    """Return a utilization feed: `public` named rows, the others private."""
    draw = random.Random(seed)
    names = public_names(public) + [PRIVATE] * (rows - public)
    return [utilization_row(
        name, active=draw.randint(0, 40), current=round(draw.random(), 4),
        u5=round(draw.random(), 4), u15=round(draw.random(), 4), u1h=round(draw.random(), 4),
        r5=draw.choice((0.0, 0.0, 0.02)), scalable=draw.random() < 0.2,
        scale_allowance=draw.randint(0, 12)) for name in names]


def models_feed(names):
    """Return a models feed that lists `names`; an item may be an entry already."""
    return {"object": "list", "data": [
        name if isinstance(name, dict) else model_entry(name) for name in names]}


def model_entry(name, **declared):
    """Return an entry of the models feed; a key that is declared as None is left out.

    About one model in ten declares no more than its `max_model_len`.
    """
    entry = {
        "id": name, "root": name.removesuffix("-TEE"), "object": "model", "created": 1771393340,
        "owned_by": "vllm", "quantization": "fp8", "max_model_len": 131072,
        "context_length": 131072, "max_output_length": 65536,
        "pricing": {"prompt": 0.08, "completion": 0.24}, "input_modalities": ["text"],
        "output_modalities": ["text"], "confidential_compute": name.endswith("-TEE"),
        "supported_features": ["json_mode", "tools", "structured_outputs"], **declared}
    return {key: value for key, value in entry.items() if value is not None}


def bare_entry(name, max_model_len=131072):
    """Return an entry of a model that declares little."""
    return model_entry(name, context_length=None, max_output_length=None, input_modalities=None,
                       output_modalities=None, supported_features=None, quantization=None,
                       max_model_len=max_model_len)
