import re
from html.parser import HTMLParser

import numpy as np
import pytest

from megatron_llava.data.html_view import samples_page
from megatron_llava.data.packing import sample_sizes
from megatron_llava.data.statistics import histogram, statistics
from megatron_llava.text.tokenizer import load_tokenizer
from megatron_llava.vision.token_layout import number_of_views


class Page(HTMLParser):
    """Images, marked text, and whether every element was closed."""

    def __init__(self, text):
        super().__init__()
        self.images, self.marked, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.images.append(dict(attrs)["src"])
        elif tag != "meta":
            self.open.append(tag)
        if tag == "mark":
            self.marked.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "mark":
            self.marked[-1] += data


def test_a_page_shows_text_labels_and_views(store, tokenizer_folder, image_settings):
    tokenizer = load_tokenizer(tokenizer_folder)
    indices = range(4)
    page = Page(samples_page(store, indices, tokenizer, image_settings))
    assert not page.open
    samples = [store.load(index) for index in indices]
    views = sum(
        number_of_views(
            size, image_settings, single_view=image_settings.single_view(len(s.image_sizes))
        )
        for s in samples
        for size in s.image_sizes
    )
    assert len(page.images) == views > 0
    assert all(image.startswith("data:image/jpeg;base64,") for image in page.images)
    supervised = samples[0].token_ids[samples[0].label_mask == 1]
    answer = tokenizer.decode(supervised.tolist()).strip()
    assert answer and any(answer.split()[0] in text for text in page.marked)


def test_a_sample_that_is_none(store, tokenizer_folder, image_settings):
    with pytest.raises(ValueError, match=f"no sample {len(store)}, it has"):
        samples_page(store, [len(store)], load_tokenizer(tokenizer_folder), image_settings)


def test_statistics_are_those_of_the_samples(store, image_settings):
    text = statistics(store, image_settings)
    lengths, views = sample_sizes(store, image_settings)
    assert text.startswith(f"{len(store):,} samples, ")
    row = next(line for line in text.splitlines() if line.startswith("positions  "))
    found = [int(number.replace(",", "")) for number in re.findall(r"[\d,]+", row)]
    assert found[0] == lengths.min() and found[-1] == lengths.max()
    assert found[3] == np.sort(lengths)[(len(lengths) - 1) // 2]
    row = next(line for line in text.splitlines() if line.startswith("views"))
    assert int(row.split()[-1].replace(",", "")) == views.max()


def test_a_histogram_counts_every_value():
    values = np.array([1, 2, 3, 4, 7, 8, 1023, 1024])
    lines = histogram(values)
    counts = [int(line.split()[3]) for line in lines]
    assert sum(counts) == 8 and counts[:4] == [1, 2, 2, 1] and counts[-2:] == [1, 1]
    assert histogram(np.array([5])) == ["4 to 7            1 " + "#" * 50]
