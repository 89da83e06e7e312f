"""What runs in the sandboxed process: it locks itself down, layer by layer, and then runs the program.

Only the standard library is at hand there, and each layer is a function that says whether it could be applied.
"""
