"""A trained model in use: sound to codes and back, files of any length, tokens for language models, decoding as tokens come.

`networks` opens a model and makes it ready; `reach` says how far it looks and cuts clips into chunks without seams; `noise`
gives the decoder the same noise however a clip is cut; `codec` encodes and decodes. `layouts` puts codes in one row;
`streaming` decodes as codes come; `code_files` stores them; `inputs` and `outputs` are files, and `jobs` the commands.
"""

from .codec import Clip, Codec, Codes
from .layouts import FlatLayout
from .networks import Network, open_network
from .streaming import StreamingDecoder

__all__ = ["Clip", "Codec", "Codes", "FlatLayout", "Network", "StreamingDecoder", "open_network"]
