"""Models as they go out and come in, one file a format.

A format is a pair of registered functions, of which one may be missing:

  @registry.register("export_format", "hf")
  def write(bundle: Bundle, folder: str) -> str | None: ...  # how to load it, for the card

  @registry.register("import_format", "hf")
  def read(path: str) -> Bundle: ...

`formats` finds them; no format is imported before it is asked for.
"""
