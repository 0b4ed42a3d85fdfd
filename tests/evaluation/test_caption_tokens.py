"""Tokens of captions: those of the Java program that defines them, for given sentences."""

import json
import unicodedata

import pytest

from simple_multimodal.evaluation.caption_tokens import caption_tokens


def test_tokens_equal_those_of_the_java_program_for_hard_sentences(shared_dir):
    golden = json.loads((shared_dir / "data/poses/captions_expected.json").read_text(encoding="utf-8"))["tokens"]
    assert len(golden) == 25
    for sentence, tokens in golden:
        assert " ".join(caption_tokens(sentence)) == tokens, sentence


# What `PTBTokenizer` of pycocoevalcap 1.2 printed.
PRINTED = {
    "A man walks. THE MAN, who is tall; stops: why?": "a man walks the man who is tall stops why",
    "don't DON'T can't won’t ain't couldn't've": "do n't do n't ca n't wo n't ai n't could n't 've",
    "i'm i'd i'll i've we're he'S it’s": "i 'm i 'd i 'll i 've we 're he 's it 's",
    "she's/he's man's/woman's don't/can't and/or's": "she 's / he 's man 's / woman 's do n't / ca n't and/or 's",
    "it 's dog 's don 't n 't": "it 's dog 's don t n t",
    "o'reilly d'angelo l'oreal cap'n ma'am o'clock's": "o'reilly d'angelo l'oreal cap'n ma'am o'clock 's",
    "boys' toys' 'hello' 'hi there' a 'quoted' word": "boys toys hello hi there a quoted word",
    "cannot gonna Gotta wanna gimme lemme 'tis 'twas": "can not gon na got ta wan na gim me lem me 't is 't was",
    "rock'n'roll y'all 'em ol' the '90s 90's '90's '48'": "rock 'n' roll y' all 'em ol' the '90s 90 's 90 's 48",
    "x-ray t-shirt 2-year-old -hello hello- a--b mid-'90s": "x-ray t-shirt 2-year-old hello hello a b mid '90s",
    "man-made/woman-made 1/2/2010 24/7 and / or a/ /b": "man-made/woman-made 1/2/2010 24/7 and / or a / / b",
    "5-6 5 - 6 10-year +5 -5 1,000,000 1,2 a,b 1.5 .5": "5-6 5 6 10-year +5 -5 1,000,000 1,2 a b 1.5 .5",
    "10:30 10:30am 10am 3.5mm 5th 4x4 mp3": "10:30 10:30 am 10am 3.5 mm 5th 4x4 mp3",
    "hello.World x.y.z foo.com. a.b-c": "hello.world x.y.z foo.com a.b-c",
    "st. louis Mr. T. dr. no. no. 1 vs. etc., tv. may.": "st. louis mr. t. dr. no no. 1 vs. etc. tv may",
    "U.S. u.s.-made e.g. p.m. J.R.R. Tolkien": "u.s. u.s.-made e.g. p.m. j.r.r. tolkien",
    "wow! wow!! wow?? ?! ! ? ... .. wait...": "wow wow !! wow ?? ?! wait",
    "$5 us$5.50 £5 5€ 50% #1 #dad @home a@b.com AT&T R&B r&b": (
        "$ 5 us $ 5.50 # 5 5 $ 50 % # 1 #dad @home a@b.com at&t r&b r & b"
    ),
    "http://a.b www.foo.com, youtube.com/watch <b>x</b> c++ c#": (
        "http://a.b www.foo.com youtube.com/watch <b> x </b> c++ c#"
    ),
    "(a)(b) [c] {d} :) :-( =) :D :Dog a:b": "-lrb- a -rrb- -lrb- b -rrb- -lsb- c -rsb- -lcb- d -rcb- :-rrb- :--lrb- "
    "=-rrb- :d dog a b",
    "½ cup, 1½ &amp; &lt; ° ★ ♪ ❤️": "1/2 cup 1 1/2 & < ° ★ ♪ ❤",
    "“a” ‘b’ «c» … – — hello—world": "a b c hello world",
    "naïve 日本語 русский हिन्दी ÅNGSTRÖM hello😀": "naïve 日本語 русский हिन्दी ångström hello",
    "": "",
    " \t\n": "",
    "...": "",
}


@pytest.mark.parametrize("caption", PRINTED)
def test_tokens_equal_those_that_the_java_program_printed(caption):
    assert " ".join(caption_tokens(caption)) == PRINTED[caption]


@pytest.mark.parametrize("piece", ["-1", "a+", ".", "a.", "a-", "<a ", "n't", "http://.", "gon"])
def test_a_long_caption_takes_a_time_that_grows_with_its_length(piece):
    assert caption_tokens(piece * 20_000) is not None  # minutes, if every token were sought to the end


def test_combining_accents_do_not_split_a_word():
    assert caption_tokens(unicodedata.normalize("NFD", "été")) == [unicodedata.normalize("NFD", "été")]
