"""TensorFlow's SavedModel, through jax2tf: it only goes out. TensorFlow alone serves it."""

from typing import Any

from mm import registry
from mm.interop import npz
from mm.interop.bundle import Bundle
from mm.interop.stablehlo import signatures, without_paths
from mm.interop.towers import build_towers

_PLATFORMS = ("cpu", "tpu", "cuda")


@registry.register("export_format", "saved_model")
def write(bundle: Bundle, folder: str) -> str:
    """Signatures `embed_image` (image) and `embed_text` (text, text_mask) of any batch size.

    Arguments as for `mm.interop.stablehlo`; the weights are variables. tokenizer.json lies beside.
    Returns how to load it.
    """
    import tensorflow as tf
    from jax.experimental import jax2tf

    towers = build_towers(bundle)
    module = tf.Module()
    module.weights = {  # slashes would be read as paths to objects
        name: tf.Variable(bundle.params[name], trainable=False) for name in towers.names
    }
    served: dict[str, Any] = {}
    for name, (function, arguments) in signatures(bundle, towers).items():
        converted = jax2tf.convert(
            function,
            polymorphic_shapes=[None, *("(b, ...)" for _ in arguments)],
            with_gradient=False,
            native_serialization_platforms=_PLATFORMS,
        )
        keys = ["image"] if name == "image" else ["text", "text_mask"]
        specs = [
            tf.TensorSpec([None, *x.shape[1:]], tf.as_dtype(x.dtype), name=key)
            for key, x in zip(keys, arguments, strict=True)
        ]

        def embed(*inputs: Any, converted: Any = converted) -> dict[str, Any]:
            return {"embedding": converted(dict(module.weights), *inputs)}

        with without_paths():
            served[f"embed_{name}"] = tf.function(
                embed, input_signature=specs, autograph=False
            ).get_concrete_function()
    tf.saved_model.save(module, folder, signatures=served)
    npz.write_tokenizer(bundle, folder)
    size, length = towers.image_shape, towers.length
    lines = ["import tensorflow as tf", 'model = tf.saved_model.load(".")']
    if "embed_image" in served:
        lines.append(
            'zimg = model.signatures["embed_image"](image=pictures)["embedding"]  '
            f"# uint8 [b, {', '.join(map(str, size))}]"
        )
    if "embed_text" in served:
        lines.append(
            'ztxt = model.signatures["embed_text"](text=ids, text_mask=mask)["embedding"]  '
            f"# int32, bool [b, {length}]"
        )
    return "\n".join(lines)
