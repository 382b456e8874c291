"""Compiled programs in a folder: for accelerators alone."""

from spatia_jax.sampling import command


def test_programs_for_cpu_are_not_kept(micro, tmp_path, capsys):
    """XLA cannot save all of them, and does not load all that it saves (docs/aot.md)."""
    start = [micro.config_file, "--image", micro.photo, "--weights", micro.weights, "--path", "pan left 20"]
    given = [*start, "--output", tmp_path / "out", "--executables", tmp_path / "kept"]
    assert command.main([str(argument) for argument in given]) != 0
    assert "JAX_COMPILATION_CACHE_DIR" in capsys.readouterr().err
    assert not (tmp_path / "kept").exists()
