"""Trained models in use: search clips by text, answer questions about them."""

from simple_multimodal.inference.answerer import Answer, QuestionAnswerer
from simple_multimodal.inference.features import FeatureReport, TowerFeatures
from simple_multimodal.inference.retriever import ClipIndex, Match, Retriever

__all__ = ["Answer", "ClipIndex", "FeatureReport", "Match", "QuestionAnswerer", "Retriever", "TowerFeatures"]
