"""Packages as an installer leaves them, in a folder to be put on ``PYTHONPATH``: real entry points, no installation."""


def package(folder, name, code, **entry_points):
    """Write the module ``name`` and a distribution of that name; ``entry_points`` map a group to its lines.

    Dots in a group's name are written as two underscores.
    """
    (folder / f"{name}.py").write_text(code)
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    groups = [f"[{group.replace('__', '.')}]\n{lines}\n" for group, lines in entry_points.items()]
    (info / "entry_points.txt").write_text("".join(groups))


ESTIMATOR = """
def est(token_level_rewards, response_mask):
    return token_level_rewards, token_level_rewards
"""
