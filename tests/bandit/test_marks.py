"""Counted by bytes, held to the pattern and the split that they stand for."""

import re

from hypothesis import given
from hypothesis import strategies as st

from bandit.marks import spaced_and_choices
from bandit.words import buckets, words_of

TEXTS = st.text(max_size=200) | st.text("ABCDabcd).: \n\t_1?x\x1c\x1f\x00\x7f,.;-'$é\xa0", max_size=300)


@given(TEXTS)
def test_stretches_and_choices_are_those_of_split_and_pattern(text):
    counted = spaced_and_choices(text, text.encode("ascii", "ignore"))
    assert counted == (len(text.split()), len(re.findall(r"(?<!\w)[A-D][).:]\s", text)))


@given(TEXTS | st.text("abc .,;:!?()[]{}<>=+*/\\|\"'`~@#$%^&-_\n", max_size=300))
def test_words_are_those_of_the_pattern_however_many_signs_there_are(text):
    lower = text.lower()
    assert words_of(lower) == re.findall(r"\w+|[^\w\s]", lower)


@given(st.text(max_size=50))
def test_each_word_has_its_bucket(text):
    assert len(buckets(text.lower(), 64)) == len(words_of(text.lower()))
