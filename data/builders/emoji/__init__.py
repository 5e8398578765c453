"""The `emoji` data set: the same concepts drawn by eight hands, with names in 28 languages.

`python -m data.builders.emoji --data_dir=.data` prepares it; see builder.py for what it holds.
"""
