"""A stored controller as ONNX files that need no PyTorch, checked in closed loop before they are handed out.

`graphs` makes the files, `runtime` runs them, `check` compares them with PyTorch, `contract` says how to
use them, and `package` puts the folder together.
"""
