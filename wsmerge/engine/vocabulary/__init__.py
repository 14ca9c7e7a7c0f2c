"""The vocabulary of merged models: tokenizer, rows of the embeddings, chat template."""

from wsmerge.engine.vocabulary.building import build_vocabulary
from wsmerge.engine.vocabulary.chat import chat_template_text, reserialise_tokenizer
from wsmerge.engine.vocabulary.rows import permuted_delta, permuted_inputs, truncated_inputs
from wsmerge.engine.vocabulary.settings import TokenSource, VocabularyModel, VocabularySettings, vocabulary_settings
from wsmerge.engine.vocabulary.vocabulary import Vocabulary, is_tokenizer_file

__all__ = [
    "TokenSource",
    "Vocabulary",
    "VocabularyModel",
    "VocabularySettings",
    "build_vocabulary",
    "chat_template_text",
    "is_tokenizer_file",
    "permuted_delta",
    "permuted_inputs",
    "reserialise_tokenizer",
    "truncated_inputs",
    "vocabulary_settings",
]
