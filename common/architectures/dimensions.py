"""Reads from config.json the dimensions and flags that every decoder has."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any

from .rows import Config, Layers

# Source: transformers, models/{llama,qwen3,deepseek_v3,nemotron_h}/; vllm/model_executor/models/llama.py
BIASES = ("attention_bias", "mlp_bias", "qkv_bias", "bias")


def common_dimensions(config: Config) -> dict[str, int]:
    """Return the dimensions that every decoder has. `q` and `kv` are rows of the projections."""
    heads = integer(config, "num_attention_heads")
    groups = integer(config, "num_key_value_heads", heads)
    head_dim = head_channels(config)
    return {
        "num_layers": config["num_hidden_layers"],
        "num_experts": 0,
        "hidden": config["hidden_size"],
        "vocab": config["vocab_size"],
        "heads": heads,
        "groups": groups,
        "head_dim": head_dim,
        "q": heads * head_dim,
        "kv": groups * head_dim,
        "ffn": config["intermediate_size"],
    }


def head_channels(config: Config) -> int:
    """Return how many channels a head has."""
    return integer(config, "head_dim", 0) or integer(config, "hidden_size") // divisor(
        config, "num_attention_heads"
    )


def integer(config: Config, name: str, otherwise: int | None = None) -> int:
    """Return a number of config.json that others are multiplied by: a text times a number would be a long text.

    Args:
        config: What config.json holds.
        name: The key.
        otherwise: What a key that is absent, null or 0 stands for. None: it must be there.

    Returns:
        The number.

    Raises:
        KeyError: It is not there.
        ValueError: It is not an integer.
    """
    value = config[name] if otherwise is None else config.get(name) or otherwise
    if type(value) is not int:
        raise ValueError(f"{name} = {value!r:.40}")
    return value


def divisor(config: Config, name: str, otherwise: int | None = None) -> int:
    """Return a number of config.json that others are divided by.

    Args:
        config: What config.json holds.
        name: The key.
        otherwise: What a key that is absent stands for. None: it must be there.

    Returns:
        The number.

    Raises:
        KeyError: It is not there.
        ValueError: It is not an integer, or 0.
    """
    value = config[name] if otherwise is None else config.get(name, otherwise)
    if type(value) is not int or value == 0:
        raise ValueError(f"{name} = {value!r:.40}")
    return value


def unless_absent(config: Config, name: str, absent: int) -> int:
    """Return a number of config.json, in which null is 0.

    Args:
        config: What config.json holds.
        name: The key.
        absent: What a key that is not there stands for.

    Returns:
        The number.

    Raises:
        ValueError: It is not an integer.
    """
    return integer(config, name, 0) if name in config else absent


def expert_dimensions(config: Config, num_experts: int, shared_experts: int) -> dict[str, int]:
    """Return the dimensions of routed experts, and of shared ones, which are as wide as so many routed ones.

    Args:
        config: What config.json holds.
        num_experts: How many routed experts a layer has.
        shared_experts: How many routed experts the shared ones together are as wide as.

    Returns:
        `num_experts`, and the rows of one routed expert's and of the shared experts' up projection.

    Raises:
        KeyError: config.json does not say how wide a routed expert is.
        ValueError: It is not an integer.
    """
    moe_ffn = integer(config, "moe_intermediate_size")
    return {"num_experts": num_experts, "moe_ffn": moe_ffn, "shared_ffn": moe_ffn * shared_experts}


def layers_alike(kind: str) -> Callable[[Config], Layers]:
    """Return the function for a table whose layers are all of one kind, "dense" or "moe"."""

    def layers(config: Config) -> Layers:
        every = range(config["num_hidden_layers"])
        return {"layers": every, kind: every}

    return layers


def dense_layers(config: Config, first: int) -> Container[int]:
    """Return the layers without experts: listed by kind, as in transformers, or counted, as in published files.

    `first` is how many there are, from the first on, where config.json says neither.
    """
    kinds = config.get("mlp_layer_types")
    if kinds is None:
        return range(config.get("first_k_dense_replace", first))
    return {layer for layer, kind in enumerate(kinds) if kind == "dense"}


def one_of(config: Config, *names: str) -> int:
    """Return a number that config.json may give under several names, as transformers 5 saves some under another.

    Args:
        config: What config.json holds.
        names: The keys.

    Returns:
        The number.

    Raises:
        KeyError: None of them is there.
        ValueError: Two of them differ.
    """
    said = {name: config[name] for name in names if name in config}
    if not said:
        raise KeyError(names[0])
    if any(value != next(iter(said.values())) for value in said.values()):
        raise ValueError(" and ".join(said))
    value: int = next(iter(said.values()))
    return value


def refuse_true(config: Config, *names: str, false: Iterable[str] = ()) -> None:
    """Refuse a config.json that says what no row or setting of a table knows.

    Args:
        config: What config.json holds.
        names: Keys that must not be true, or anything else that is neither null nor zero.
        false: Keys that must not be false, if they are there.

    Raises:
        ValueError: Some are; it names all of them.
    """
    found = [name for name in names if config.get(name)]
    found += [name for name in false if config.get(name, True) is False]
    if found:
        told = ", ".join(f"{name} = {config[name]!r:.40}" for name in found)
        raise ValueError(f"{told}, of which the table knows nothing")


def common_flags(config: Config) -> frozenset[str]:
    """Return {"untied"} unless input and output embeddings are one tensor."""
    return frozenset() if config.get("tie_word_embeddings", False) else frozenset({"untied"})


def unbiased_flags(config: Config, *others: str) -> frozenset[str]:
    """Return the common flags of a decoder whose projections have no biases.

    Args:
        config: What config.json holds.
        others: Further keys that must not be true.

    Returns:
        The flags.

    Raises:
        ValueError: config.json says that there are biases, which readers would build and find nowhere.
    """
    refuse_true(config, *BIASES, *others)
    return common_flags(config)


def set_flags(flags: Mapping[str, Any]) -> frozenset[str]:
    """Return the names whose value is true."""
    return frozenset(name for name, value in flags.items() if value)
