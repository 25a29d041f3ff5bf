"""What a decoder keeps of the tokens it has read: plain arrays, carried by whoever decodes.

Layers that see everything and layers that see a window have caches of their own, "full" and
"local", as far as there are such layers. Of a window only its tokens are kept, in a ring.
"""

import jax.numpy as jnp

from lm.mesh import ACTIVATIONS, current_mesh, local, put
from lm.nn.attention import Context, Visible, kv_copies, written
from lm.nn.positions import rotation

# Where each array lives: keys of mesh.ACTIVATIONS, and the dim of the batch.
PLACES = {
    "positions_BS": ("tokens", 0),
    "segments_BS": ("tokens", 0),
    "key_LBKSH": ("layer_heads", 1),
    "value_LBKSH": ("layer_heads", 1),
    "latent_LBKSH": ("layer_copied_heads", 1),
}


def kind(layer):
    """The name of the cache of a config.Layer."""
    return "local" if layer.local else "full"


def empty_cache(config, batch, length):
    """A cache with room for `length` tokens of `batch` rows.

    {"index": the number of tokens read, kind: {"positions_BS", "segments_BS", and stacked over the
    layers of the kind "key_LBKSH" and "value_LBKSH", or "latent_LBKSH"}}. Segment 0 is empty.
    For an encoder-decoder `Transformer.remember` gives cache["cross"], which stays as it is.
    """
    cache = {"index": jnp.zeros((), jnp.int32)}
    kinds = [kind(layer) for layer in config.layers()]
    for name in dict.fromkeys(kinds):
        size = min(config.window, length) if name == "local" else length
        if config.kv_latent:
            widths = {"latent_LBKSH": (1, config.kv_latent + config.rope_width)}
        else:
            heads = config.num_kv_heads * kv_copies(config)
            widths = dict.fromkeys(("key_LBKSH", "value_LBKSH"), (heads, config.head_width))
        rows = {key: jnp.zeros((batch, size), jnp.int32) for key in ("positions_BS", "segments_BS")}
        stacks = {
            key: jnp.zeros((kinds.count(name), batch, K, size, H), config.compute_dtype)
            for key, (K, H) in widths.items()
        }
        cache[name] = {key: put(x, PLACES[key][0]) for key, x in {**rows, **stacks}.items()}
    return cache


def begin(config, rows, cache, dtype, memory=None):
    """({kind: Context}, cache) for a call of the layers with tokens that have these rows.

    rows: "positions_BT" and perhaps "segments_BT", "until_BT" and "global_BT", of Visible. In the
    cache, if it is not None, are then the tokens' positions and segments, and its index counts
    them; the contexts have the index before. dtype: of the rotation, or float32 if wider. memory:
    what an encoder gave, or cache["cross"], for the context "cross".
    """
    contexts, index = {}, None if cache is None else cache["index"]
    queries = {name: x for name, x in rows.items() if name != "global_BT"}
    positions_BT, segments_BT = rows["positions_BT"], rows.get("segments_BT")
    is_global = rows.get("global_BT")
    if cache is not None:
        memory = cache.get("cross", memory)
        cache = {**cache, "index": index + positions_BT.shape[1]}
    for name in dict.fromkeys(kind(layer) for layer in config.layers()):
        is_local = name == "local"
        keys = {"positions_BS": positions_BT, "segments_BS": segments_BT}
        if cache is not None:
            keys, written_rows = _written_rows(cache[name], keys, index, is_local)
            cache[name] = {**cache[name], **written_rows}
        near = {"window": config.window, "global_BS": is_global} if is_local else {}
        visible = Visible(**queries, **keys, **near, causal=config.causal)
        rope = config.position == "rope"
        turned = rotation(positions_BT, config, dtype, is_local) if rope else None
        contexts[name] = Context(visible, turned, index, global_BT=is_global)
    if memory is not None:
        contexts["cross"] = _cross(positions_BT, segments_BT, memory)
    return contexts, cache


def _cross(positions_BT, segments_BT, memory):
    """The Context of attention to an encoder's output: of the same segment, 1 if there are none."""
    memory = dict(memory)
    keys = {name: memory.pop(name) for name in ("positions_BS", "segments_BS")}
    shape = keys["positions_BS"].shape[0], positions_BT.shape[1]
    if segments_BT is None:
        segments_BT = put(jnp.ones(shape, jnp.int32), "tokens")
    positions_BT = put(jnp.broadcast_to(positions_BT, shape), "tokens")
    visible = Visible(positions_BT, segments_BT=segments_BT, causal=False, **keys)
    return Context(visible, memory=memory)


def _written_rows(cache, new, index, ring):
    """({name: what queries are compared with}, {name: the cache's rows}), with `new` in them."""

    def write(rows, new, index):
        stacks = {name: x[None, :, None, :, None] for name, x in rows.items()}
        new = {name: x[:, :, None, None] for name, x in new.items()}
        pairs = {name: written(x, new[name], (0, index), ring) for name, x in stacks.items()}
        seen = {name: seen[:, :, 0, 0] for name, (seen, _) in pairs.items()}
        return seen, {name: stack[0, :, 0, :, 0] for name, (_, stack) in pairs.items()}

    rows = {name: cache[name] for name in new}
    return local(write, ("tokens", "tokens", None), ("tokens", "tokens"))(rows, new, index)


def take_rows(cache, rows_N):
    """The cache with these rows of the batch, which may be more than it had."""

    def taken(name, x):
        place, dim = PLACES[name]
        place = None if current_mesh() is None else ACTIVATIONS[place]
        return x.at[(slice(None),) * dim + (rows_N,)].get(out_sharding=place)

    index, kinds = {"index": cache["index"]}, cache.keys() - {"index"}
    return index | {n: {key: taken(key, x) for key, x in cache[n].items()} for n in kinds}
