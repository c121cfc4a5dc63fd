"""Tokenizer classes of transformers that split text in a way of their own, whatever their tokenizer.json says.

transformers builds such a tokenizer out of the vocabulary alone. Those of language models that convert are built here,
too (`fastsnn_text.tokenizer_recipes`); the others are refused: with the file as it is, ids would be others. A test
compares every class with transformers.
"""

from __future__ import annotations

_NAMES = """
Albert Bart Barthez Bartpho Bert BertGeneration BertJapanese BertTokenizerLegacy Bertweet BigBird BioGpt
Blenderbot BlenderbotSmall ByT5 CLIP CTRL Camembert Canine Clvp ConvBert Cpm CpmAnt DPRContextEncoder
DPRQuestionEncoder DPRReader Deberta DebertaV2 Dia DistilBert Esm Esmc FNet FSMT FastSpeech2Conformer Flaubert
Funnel GPTNeoXJapanese GPTSw3 Herbert LED LasrTokenizer LayoutLMv2 LayoutLMv3 LayoutXLM Luke Lxmert M2M100 MBart MBart50
MLuke MPNet Marian MarkupLM Mgpstr MobileBert Mvp MyT5 Nllb Nougat OpenAIGPT PLBart Parakeet Pegasus Perceiver
Phobert Pop2Piano ProphetNet Rag Reformer RemBert RoCBert RoFormer Roberta SeamlessM4T Siglip Siglip2
Speech2Text SpeechT5 Splinter T5 Tapas Tipsv2 Udop VideoPrism Vits Wav2Vec2CTC Wav2Vec2PhonemeCTC Whisper XGLM
XLM XLMRoberta XLNet
"""
UNREAD = frozenset(f"{name}Tokenizer" if "Tokenizer" not in name else name for name in _NAMES.split())
