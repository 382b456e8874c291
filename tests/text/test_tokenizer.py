"""Tokenizers: what UMT5's prompts went through, and no prompt that breaks them."""

import subprocess
import sys

import numpy as np
import pytest
import sentencepiece
import tokenizers

from spatia_jax import text
from spatia_jax.errors import InputError

CAPTIONS = [
    f"A {size} room with a {color} {thing} and a wooden floor; a {color} ball rolls."
    for size in ("small", "large", "narrow")
    for color in ("red", "green", "blue")
    for thing in ("sofa", "table", "lamp", "bookshelf")
]
ODD = {
    "empty": "",
    "blank": " \n\t\u3000 ",
    "control": "a\x00b\x07c\x1b[31m",
    "surrogate": "a \ud83d b \udc00",
    "chinese": "一间有红色沙发的房间，镜头向前推进",
    "arabic": "غرفة فيها أريكة حمراء",
    "emoji": "👩‍👩‍👧‍👦 🏳️‍🌈 🛋️",
    "combining": "e" + "\u0301" * 200,
    "marks": "</s> <pad> <unk> <extra_id_0>",
    "long": "word " * 20000,
    "one word": "x" * 20000,
    "right to left": "\u202eabc",
    "beyond the plane": "𝔊𓀀\U0010fffd",
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "tokenizer.json"
    return text.train_tokenizer(CAPTIONS, 400, path), path


@pytest.fixture(scope="module")
def spiece(tmp_path_factory):
    """A SentencePiece model with UMT5's ids of the marks."""
    prefix = tmp_path_factory.mktemp("text") / "spiece"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CAPTIONS),
        model_prefix=str(prefix),
        vocab_size=120,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return text.Tokenizer.load(f"{prefix}.model")


@pytest.fixture(scope="module")
def both_kinds(tmp_path_factory):
    """One vocabulary with byte fallback, like UMT5's, as spiece.model and as the tokenizer.json made from it."""
    folder = tmp_path_factory.mktemp("umt5")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CAPTIONS), model_prefix=str(folder / "spiece"), vocab_size=400, hard_vocab_limit=False,
        byte_fallback=True, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model"))
    vocabulary = [(pieces.id_to_piece(i), pieces.get_score(i)) for i in range(pieces.vocab_size())]
    fast = tokenizers.Tokenizer(tokenizers.models.Unigram(vocabulary, unk_id=2, byte_fallback=True))
    fast.normalizer = tokenizers.normalizers.NFKC()
    fast.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="always")
    # What released files do besides: they add the end mark, and may cut and pad.
    fast.add_special_tokens(["<pad>", "</s>", "<unk>"])
    fast.post_processor = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast.enable_truncation(5)
    fast.enable_padding(length=9)
    fast.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize("name", [name for name in ODD if name not in ("control", "surrogate", "marks")])
def test_both_kinds_of_file_give_the_same_ids(both_kinds, name):
    prompts = [ODD[name], CAPTIONS[0], f"{CAPTIONS[1]}  &amp;amp; {ODD[name][:40]}"]
    fast, slow = (text.Tokenizer.load(both_kinds / file) for file in ("tokenizer.json", "spiece.model"))
    assert (fast.pad, fast.eos, fast.vocab_size) == (slow.pad, slow.eos, slow.vocab_size)
    for a, b in zip(fast.encode(prompts, 48), slow.encode(prompts, 48), strict=True):
        np.testing.assert_array_equal(a, b)


def test_ids_of_the_marks_are_those_of_umt5(trained, spiece):
    assert (trained[0].pad, trained[0].eos) == (spiece.pad, spiece.eos) == (0, 1)


@pytest.mark.parametrize("name", ODD)
def test_no_prompt_breaks_it(trained, spiece, name):
    for tokenizer in (trained[0], spiece):
        ids, mask = tokenizer.encode([ODD[name], "a red sofa"], 24)
        assert ids.shape == mask.shape == (2, 24)
        assert ids.dtype == np.int32
        assert np.all((ids >= 0) & (ids < tokenizer.vocab_size))
        lengths = mask.sum(axis=1)
        np.testing.assert_array_equal(mask, np.arange(24) < lengths[:, None])
        assert np.all(ids[~mask] == tokenizer.pad)
        assert np.all(ids[np.arange(2), lengths - 1] == tokenizer.eos)


@pytest.mark.parametrize("name", [name for name in ODD if name not in ("empty", "blank", "marks")])
def test_trained_tokenizer_knows_every_text(trained, name):
    ids, mask = trained[0].encode([ODD[name]], 64)
    assert np.all(ids[mask][:-1] > 2)


def test_empty_prompt_is_the_end_mark(trained):
    ids, mask = trained[0].encode(["", "  "], 4)
    np.testing.assert_array_equal(ids, [[1, 0, 0, 0]] * 2)
    np.testing.assert_array_equal(mask, [[True, False, False, False]] * 2)


def test_long_prompts_keep_their_beginning_and_the_end_mark(trained):
    tokenizer = trained[0]
    full, _ = tokenizer.encode(["a red sofa and a green lamp"], 64)
    cut, mask = tokenizer.encode(["a red sofa and a green lamp"], 4)
    np.testing.assert_array_equal(cut[0], [*full[0, :3], tokenizer.eos])
    assert mask.all()


def test_words_of_the_captions_are_single_tokens_and_case_does_not_matter(trained):
    _, mask = trained[0].encode(["a red sofa"], 16)
    assert mask.sum() == 4  # three words and the end mark
    lower, upper = (trained[0].encode([t], 16)[0] for t in ("a red sofa", "A RED Sofa"))
    np.testing.assert_array_equal(lower, upper)


def test_training_again_elsewhere_gives_the_same_file(trained, tmp_path):
    again = tmp_path / "again.json"
    code = f"from spatia_jax import text; text.train_tokenizer({CAPTIONS!r}, 400, {str(again)!r})"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert again.read_bytes() == trained[1].read_bytes()


def test_cleaning_is_the_official_one():
    assert text.clean("  a&amp;lt;b \n\t c ") == "a<b c"
    assert text.clean("The quality isnâ€™t bad") == "The quality isn't bad"
    assert text.clean("a\u00a0\u3000b") == "a b"


def test_folder_or_file(trained):
    _, path = trained
    sample = ["a blue lamp"]
    np.testing.assert_array_equal(
        text.Tokenizer.load(path.parent).encode(sample, 8)[0], text.Tokenizer.load(str(path)).encode(sample, 8)[0]
    )


def test_unusable_files_are_refused_in_one_line(tmp_path):
    with pytest.raises(InputError, match="no tokenizer at"):
        text.Tokenizer.load(tmp_path / "nowhere")
    for name in ("tokenizer.json", "spiece.model"):
        (tmp_path / name).write_text("not a tokenizer")
        with pytest.raises(InputError, match="not a tokenizer that can be read"):
            text.Tokenizer.load(tmp_path / name)
    with pytest.raises(InputError, match="at least"):
        text.train_tokenizer(CAPTIONS, 100, tmp_path / "small.json")


def test_a_bare_string_is_not_a_list_of_texts(trained):
    with pytest.raises(InputError, match="list of texts"):
        trained[0].encode("a room", 8)


def test_prompts():
    assert text.SUFFIX == " 4K, realistic, high quality, HDR."
    assert "水印" in text.NEGATIVE_PROMPT
