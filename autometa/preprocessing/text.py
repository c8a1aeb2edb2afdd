"""A text column as a few numbers: latent semantic analysis of its character n-grams, its length and its frequency."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

N_COMPONENTS = 12
_FIT_ROWS = 3_000
_MAX_GRAMS = 4_096
_MAX_VALUES = 2_000
_MAX_CHARACTERS = 400
_GRAM_LENGTHS = (3, 4)


@dataclass(frozen=True, eq=False)
class TextColumn:
    """How one text column becomes numbers.

    Fitted by skrub's ``StringEncoder`` (tf-idf of character n-grams within words, then a truncated singular value
    decomposition; Deerwester et al., 1990) on the 4,096 most frequent n-grams of up to 3,000 rows, and applied here
    from its arrays, so that nothing but data has to be kept.

    Parameters
    ----------
    grams : list of str
    idf : ndarray of shape (n_grams,)
    components : ndarray of shape (n_grams, n_components)
        Divided by skrub's scaling factor.
    values : list of str
        Texts that occur more than once, the most frequent first, at most 2,000.
    counts : ndarray of shape (n_values,)
        How often each occurs in the table of ``fit``.
    """

    grams: list[str]
    idf: NDArray[np.float64]
    components: NDArray[np.float64]
    values: list[str]
    counts: NDArray[np.float64]

    @classmethod
    def fit(cls, texts: list[str], rng: np.random.RandomState) -> TextColumn:
        """From the texts of one column; empty ones are missing."""
        known = [text[:_MAX_CHARACTERS] for text in texts if text]
        repeated = [(text, count) for text, count in Counter(known).most_common(_MAX_VALUES) if count > 1]
        if len(known) > _FIT_ROWS:
            known = [known[row] for row in np.sort(rng.choice(len(known), _FIT_ROWS, replace=False))]
        grams, idf, components = _fit_components(known, seed=int(rng.randint(2**31 - 1)))
        counts = np.array([count for _, count in repeated], dtype=np.float64)
        return cls(grams, idf, components, [text for text, _ in repeated], counts)

    @property
    def names(self) -> list[str]:
        found = [f"text{i}" for i in range(self.components.shape[1])] + ["length"]
        return [*found, "frequency"] if self.values else found

    def transform(self, texts: list[str]) -> NDArray[np.float64]:
        """Matrix of shape (n_rows, len(self.names)): components, log of the length and of the frequency."""
        texts = [text[:_MAX_CHARACTERS] for text in texts]
        length = np.log1p(np.array([len(text) for text in texts], dtype=np.float64))
        blocks = [self._project(texts), length[:, None]]
        if self.values:
            rows = np.array([self._value_rows.get(text, -1) for text in texts], dtype=np.intp)
            blocks.append(np.log1p(np.append(self.counts, 0.0)[rows])[:, None])
        return np.hstack(blocks)

    def to_state(self) -> dict[str, Any]:
        return {
            "grams": list(self.grams),
            "idf": self.idf,
            "components": self.components,
            "values": list(self.values),
            "counts": self.counts,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> TextColumn:
        return cls(**state)

    @cached_property
    def _value_rows(self) -> dict[str, int]:
        return {value: row for row, value in enumerate(self.values)}

    @cached_property
    def _gram_rows(self) -> dict[str, int]:
        return {gram: row for row, gram in enumerate(self.grams)}

    def _project(self, texts: list[str]) -> NDArray[np.float64]:
        """Row-normalised tf-idf times components. Shape (n_rows, n_components)."""
        from scipy.sparse import csr_array

        n_rows, n_grams = len(texts), len(self.grams)
        if not n_grams or not n_rows:
            return np.zeros((n_rows, self.components.shape[1]))
        cells = self._cells(texts)  # (n_occurrences,) row * n_grams + gram
        cells, counts = np.unique(cells, return_counts=True)
        rows, grams = np.divmod(cells, n_grams)
        weights = counts * self.idf[grams]
        norms = np.sqrt(np.bincount(rows, weights * weights, minlength=n_rows))
        weights /= norms[rows]
        starts = np.searchsorted(rows, np.arange(n_rows + 1))
        return np.asarray(csr_array((weights, grams, starts), shape=(n_rows, n_grams)) @ self.components)

    def _cells(self, texts: list[str]) -> NDArray[np.int64]:
        """Every occurrence of a known n-gram; words repeat, so each is taken apart once."""
        grams_of: dict[str, list[int]] = {}
        found: list[int] = []
        lengths: list[int] = []
        for text in texts:
            before = len(found)
            for word in text.lower().split():
                grams = grams_of.get(word)
                if grams is None:
                    rows = (self._gram_rows.get(gram) for gram in word_grams(word))
                    grams = grams_of[word] = [row for row in rows if row is not None]
                found += grams
            lengths.append(len(found) - before)
        row_of = np.repeat(np.arange(len(texts)), lengths)
        return row_of * len(self.grams) + np.array(found, dtype=np.int64)


def word_grams(word: str) -> list[str]:
    """Character n-grams of one word between two blanks, as scikit-learn's ``analyzer="char_wb"`` counts them."""
    padded = f" {word} "
    found = []
    for length in range(_GRAM_LENGTHS[0], _GRAM_LENGTHS[1] + 1):
        found += [padded[start : start + length] for start in range(max(1, len(padded) - length + 1))]
        if len(padded) <= length:
            break  # a short word counts once
    return found


def _fit_components(texts: list[str], seed: int) -> tuple[list[str], NDArray[np.float64], NDArray[np.float64]]:
    """N-grams, their inverse document frequencies and the scaled components; nothing if there is no word."""
    from skrub import StringEncoder  # takes more than a second to import, so only tables with text pay for it

    document_counts: Counter[str] = Counter()
    for text in texts:
        document_counts.update({gram for word in set(text.lower().split()) for gram in word_grams(word)})
    ordered = sorted(document_counts.items(), key=lambda item: (-item[1], item[0]))[:_MAX_GRAMS]
    grams = [gram for gram, _ in ordered]
    n_components = min(N_COMPONENTS, len(texts) - 1, len(grams) - 1)
    if n_components < 1:
        return [], np.zeros(0), np.zeros((0, 0))
    encoder = StringEncoder(n_components=n_components, ngram_range=_GRAM_LENGTHS, vocabulary=grams, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        encoder.fit_transform(pd.Series(texts, name="text", dtype=str))
    scale = float(encoder.scaling_factor_)
    components = np.asarray(encoder.tsvd_.components_, dtype=np.float64).T / (scale if scale > 0 else 1.0)
    return grams, np.asarray(encoder.vectorizer_.idf_, dtype=np.float64), np.ascontiguousarray(components)
