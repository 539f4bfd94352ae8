"""Models on a Hugging Face hub: looked at without downloading, downloaded, and refusals explained.

settings   endpoint, cache and token, as the environment has them
client     one repository at one commit
choice     which of its files are needed
peeking    the model's structure from headers
cached     the same as the cache has it, where the hub cannot be asked
fetching   downloads into huggingface_hub's cache
publishing uploads, as far as a repository lacks them
refusals   the hub's answers as errors with a remedy
"""

from quantailor.models.hub.cached import CachedRepo
from quantailor.models.hub.choice import Choice, RepoFile, choose
from quantailor.models.hub.client import DOWNLOAD_PATIENCE_S, Repo, RepoAtCommit
from quantailor.models.hub.peeking import Structure, structure_of
from quantailor.models.hub.settings import HubSettings, Token, find_token
