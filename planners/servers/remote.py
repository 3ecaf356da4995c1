"""RemoteScorer: how likely a language model on a server finds each candidate text after a prompt.

    scorer = RemoteScorer("http://gpu-box:8000", "Qwen/Qwen3-8B-Base")        # vllm serve Qwen/Qwen3-8B-Base

For servers of OpenAI's completions interface that return the log-probabilities of what they are given, as vLLM does.
Many do not, and some answer with zeros instead, so that every server is tried out before it is planned with.

To read a text for its own log-probabilities takes a server much longer than to tell the likeliest next tokens after a
prompt that it remembers. So candidates are first followed token by token among those, and the hopeless given up.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from skills.wire.conventions import is_loopback

TRY_AGAIN = (429, 503)  # HTTP: too many requests, not available now
NEGLIGIBLE, FEW = 1e-5, 4  # as planners.language's, which needs torch; fewer candidates are read as they are
FIRST_PAUSE = 0.5  # [s] before a second try; doubled for each further one
MAX_ANSWER = 512 << 20  # [bytes]; 100 candidates after 400 tokens take a few million
PROBE = "1. one\n2. two\n3. three\n4."
LIKELY, UNLIKELY = " four\n", " two\n"  # equally long, so that a constant for each token is found out
TOP = 20  # likeliest next tokens that are asked for; vLLM tells no more unless it is started so
LINES = 100  # candidates whose tokens are asked for in one text
UNTOLD = 1e-3  # as likely as this, relative to the likeliest, a candidate may be for which the server must read it all
STAGES = (1, 3, 4)  # tokens after which hopeless candidates are given up; one request each, and one for the rest
INSTEAD = "let the model propose steps instead of scoring them (planners.proposal.ProposalPlanner)"


class RemoteError(RuntimeError):
    """A language server that cannot be used: which one, why, and what to do."""


class CannotScore(RemoteError):
    """The server works, but does not tell how likely a given text is."""


Pieces = tuple[str, ...]  # a text's tokens, as text


@dataclass(frozen=True)
class Row:
    """One text as the server reads it."""

    tokens: list[str]
    logprobs: list[float | None]  # of each token, given those before; the first has none


class LanguageServer:
    """A server of OpenAI's interface, asked until it answers or the time is up. May be used from several threads."""

    def __init__(
        self,
        url: str,  # "http://host:8000", with or without the "/v1" at its end
        model: str,  # as the server calls it
        api_key: str | None = None,  # sent as a bearer token, and told to nobody else
        timeout: float = 60.0,  # [s] for one answer, further tries included
    ) -> None:
        parts = urlsplit(url)
        _ = parts.port  # ValueError unless it is a number
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
            shown = url.rpartition("@")[2]  # what stands before an @ may be a password
            raise ValueError(f"{shown!r} is no address of a server; give http://host:port and the key as api_key")
        if api_key and not (api_key.isascii() and api_key.isprintable()):
            raise ValueError("api_key has characters that no key has (a line break at its end?)")
        self.model, self.timeout = model, timeout
        self.server = f"{parts.scheme}://{parts.netloc}"
        self._root = url.split("?")[0].rstrip("/").removesuffix("/v1") + "/v1"
        self._key = api_key or ""
        proxies = [urllib.request.ProxyHandler({})] if is_loopback(parts.hostname) else []
        self._opener = urllib.request.build_opener(_NoRedirects, *proxies)

    def models(self) -> list[str]:
        """What the server offers; nothing where it does not say."""
        try:
            answer = self.ask("/models", None, time.monotonic() + self.timeout)
            return [str(model["id"]) for model in answer["data"]]
        except (RemoteError, KeyError, TypeError):
            return []

    def ask(self, path: str, body: dict[str, Any] | None, deadline: float) -> Any:
        """The answer's JSON. A busy server is asked again until the deadline (of time.monotonic)."""
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._root + path, data, headers)
        refused: Refused | None = None
        pause = FIRST_PAUSE
        while True:
            try:
                return json.loads(self._fetch(request, deadline))
            except urllib.error.HTTPError as error:
                with error:
                    refused = self._refused(error)
                pause = max(pause, _seconds(error.headers.get("Retry-After")))
            except TimeoutError:
                raise self._late("gave no answer", refused) from None
            except urllib.error.URLError as error:
                if isinstance(error.reason, TimeoutError):
                    raise self._late("could not be reached", refused) from None
                raise RemoteError(f"{self.server} cannot be reached: {self._clean(error.reason)}") from None
            except (OSError, http.client.HTTPException) as error:
                reason = self._clean(error) or type(error).__name__
                raise RemoteError(f"{self.server} broke off its answer: {reason}") from None
            except ValueError:
                raise RemoteError(f"{self.server} does not answer with JSON; is this a language server?") from None
            if refused.status not in TRY_AGAIN:
                raise refused
            if time.monotonic() + pause >= deadline:
                raise self._late("is too busy", refused)
            time.sleep(pause)
            pause *= 2

    def _late(self, what: str, refused: Refused | None) -> RemoteError:
        """The deadline ran out: while the server was too busy, if it ever said so."""
        if refused is None:
            return RemoteError(f"{self.server} {what} within {self.timeout:g} s")
        return RemoteError(f"{self.server} is too busy, asked for {self.timeout:g} s at most: {refused.said}")

    def _fetch(self, request: urllib.request.Request, deadline: float) -> bytes:
        """The answer's bytes. A server that trickles them is given up too."""
        parts, size = [], 0
        with self._opener.open(request, timeout=max(deadline - time.monotonic(), 1e-3)) as answer:
            while part := answer.read1(1 << 20):
                parts.append(part)
                size += len(part)
                if size > MAX_ANSWER:
                    raise RemoteError(f"{self.server} answers with more than {MAX_ANSWER >> 20} MiB; lower `batch`")
                if time.monotonic() > deadline:
                    raise TimeoutError
        return b"".join(parts)

    def _refused(self, error: urllib.error.HTTPError) -> Refused:
        """What the server says about it, in one line."""
        try:
            said = error.read(1 << 16).decode(errors="replace")
        except (OSError, http.client.HTTPException):
            said = ""
        try:
            answer = json.loads(said)
            reason = answer.get("error", answer)  # OpenAI's and vLLM's; others have the message at the top
            said = str(reason.get("message", reason) if isinstance(reason, dict) else reason)
        except (ValueError, AttributeError):
            pass
        return Refused(self.server, error.code, f"HTTP {error.code}" + (f", {self._clean(said)}" if said else ""))

    def _clean(self, said: object) -> str:
        """One line that does not hold the key, whatever a server says."""
        text = str(said).replace(self._key, "***") if self._key else str(said)
        return " ".join(text.split())[:300]


class RemoteScorer(LanguageServer):
    """A language model behind HTTP that scores texts, as LanguageScorer does. May be used from several threads."""

    def __init__(
        self,
        url: str,
        model: str,
        api_key: str | None = None,
        timeout: float = 60.0,  # [s] for one call of `score`, further tries included
        batch: int = 128,  # texts in one request
        negligible: float = NEGLIGIBLE,  # see `score`
    ) -> None:
        super().__init__(url, model, api_key, timeout)
        self.batch, self.negligible = batch, negligible
        self._last: tuple[tuple[str, tuple[str, ...]], list[list[float | None]]] = (("", ()), [])
        self._pieces: dict[tuple[str, str], Pieces | None] = {}  # of candidates, by what they stand behind
        self._max_tokens = 0  # 1 where a server insists on saying something itself
        self._probe()

    def score(self, prompt: str, candidates: Sequence[str]) -> np.ndarray:
        """Log-likelihoods (N,) float32: the sum over each candidate's tokens, given the prompt.

        A candidate brings its own blank and its own end, as for LanguageScorer. Where a candidate's first letters merge
        into one token with the prompt's last ones, all candidates are scored from before that token.

        -inf for a candidate given up early: one whose beginning is less than `negligible` times as likely as the
        likeliest beginning of that length. With `negligible` 0 every candidate is scored.
        """
        scores, deadline = np.zeros(len(candidates)), time.monotonic() + self.timeout
        unknown = np.arange(len(candidates))
        if self.negligible and len(candidates) > FEW and (pieces := self._cut(prompt, candidates, deadline)):
            with contextlib.suppress(_NoneTold):
                scores, unknown = self._followed(prompt, pieces, deadline)
        exact = self._values(prompt, [candidates[int(i)] for i in unknown], deadline)
        scores[unknown] = [self._sum(values) for values in exact]
        return scores.astype(np.float32)

    def _followed(self, prompt: str, pieces: list[Pieces], deadline: float) -> tuple[np.ndarray, np.ndarray]:
        """Log-likelihoods (N,), -inf for the hopeless, and the indices of those that cannot be told so: some token of
        theirs is not among the likeliest, and they may be as likely as UNTOLD for all that."""
        scores, sure = np.zeros(len(pieces)), np.ones(len(pieces), bool)
        alive, start = np.arange(len(pieces)), 0
        for end in (*STAGES, max(map(len, pieces))):
            nodes = {pieces[i][:at] for i in alive for at in range(start, min(end, len(pieces[i])))}
            told = self._next_tokens(prompt, sorted(nodes), deadline)
            for i in alive:
                for at in range(start, min(end, len(pieces[i]))):
                    likeliest = told[pieces[i][:at]]
                    sure[i] &= pieces[i][at] in likeliest
                    scores[i] += likeliest.get(pieces[i][at], min(likeliest.values()))  # it is at most that
            best = scores[alive[sure[alive]]].max(initial=-np.inf)
            least = np.log(np.where(sure[alive], self.negligible, max(self.negligible, UNTOLD)))
            hopeless = scores[alive] < best + least
            scores[alive[hopeless]] = -np.inf
            alive, start = alive[~hopeless], end
        return scores, alive[~sure[alive]]

    def _next_tokens(self, prompt: str, nodes: list[Pieces], deadline: float) -> dict[Pieces, dict[str, float]]:
        """The likeliest tokens after the prompt and each of these beginnings. Raises _NoneTold."""
        request = {"model": self.model, "max_tokens": 1, "logprobs": TOP, "temperature": 0}
        told: list[dict[str, float]] = []
        for first in range(0, len(nodes), self.batch):
            texts = [prompt + "".join(node) for node in nodes[first : first + self.batch]]
            try:
                answer = self.ask("/completions", request | {"prompt": texts}, deadline)
                choices = sorted(answer["choices"], key=lambda choice: choice["index"])
                tops = [dict(choice["logprobs"]["top_logprobs"][0]) for choice in choices]
                told += [{token: float(value) for token, value in top.items()} for top in tops]
            except Refused as refused:
                if refused.status not in (400, 422):
                    raise
                raise _NoneTold from None
            except (KeyError, TypeError, IndexError, ValueError):
                raise _NoneTold from None
        if len(told) != len(nodes) or not all(top and all(map(math.isfinite, top.values())) for top in told):
            raise _NoneTold
        return dict(zip(nodes, told, strict=True))

    def _cut(self, prompt: str, candidates: Sequence[str], deadline: float) -> list[Pieces] | None:
        """Each candidate's tokens after the prompt's last line, from one text of as many lines; None where tokens go
        beyond a line or a candidate. What a tokenizer makes of a candidate does not depend on the line's number."""
        line = prompt.rpartition("\n")[2]
        new = [text for text in dict.fromkeys(candidates) if (line[-1:], text) not in self._pieces]
        for first in range(0, len(new) if line else 0, LINES):
            lines, cuts = new[first : first + LINES], None
            try:
                (row,) = self._read(["".join(line + text for text in lines)], deadline)
                cuts = _cuts(row.tokens, [part for text in lines for part in (line, text)])
            except Refused as refused:  # longer than the model can read, it may be
                if refused.status not in (400, 422):
                    raise
            for number, text in enumerate(lines):
                self._pieces[line[-1:], text] = cuts[2 * number + 1] if cuts and text.endswith("\n") else None
        found = [self._pieces.get((line[-1:], text)) for text in candidates]
        whole = [pieces for pieces in found if pieces is not None]
        return whole if len(whole) == len(found) else None

    def count_tokens(self, prompt: str, candidates: Sequence[str]) -> np.ndarray:
        """(N,) how many tokens `score` sums over for each candidate. Asks the server, unless it was just asked."""
        deadline = time.monotonic() + self.timeout
        if len(candidates) > FEW and (pieces := self._cut(prompt, candidates, deadline)):
            return np.array([len(tokens) for tokens in pieces])
        return np.array([len(values) for values in self._values(prompt, candidates, deadline)], int)

    def _values(self, prompt: str, candidates: Sequence[str], deadline: float) -> list[list[float | None]]:
        """The log-probabilities of each candidate's tokens."""
        asked = (prompt, tuple(candidates))
        last, known = self._last  # read once, for other threads write it
        if not candidates or last == asked:
            return known if candidates else []
        texts = [prompt, *(prompt + candidate for candidate in candidates)]
        rows = [
            row
            for start in range(0, len(texts), self.batch)
            for row in self._read(texts[start : start + self.batch], deadline)
        ]
        columns = zip(*(row.tokens for row in rows), strict=False)
        shared = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
        if not shared:
            raise ValueError("the prompt is empty; a candidate is scored given at least one token")
        values = [row.logprobs[shared:] for row in rows[1:]]
        self._last = asked, values
        return values

    def _sum(self, logprobs: Sequence[float | None]) -> float:
        numbers = [value for value in logprobs if value is not None]
        if len(numbers) < len(logprobs) or not all(math.isfinite(value) for value in numbers):
            raise CannotScore(f"{self.server} left out log-probabilities, or gave some that are not finite; {INSTEAD}")
        return sum(numbers)

    # -- trying the server out ---------------------------------------------------------------------------------------

    def _probe(self) -> None:
        """Refuse a server whose numbers would not be likelihoods."""
        try:
            likely, unlikely = self.score(PROBE, [LIKELY, UNLIKELY])
        except Refused as refused:
            if refused.status not in (400, 422):
                raise self._cannot(refused) from None
            self._max_tokens = 1
            try:
                likely, unlikely = self.score(PROBE, [LIKELY, UNLIKELY])
            except Refused as again:
                raise self._cannot(again) from None
        if likely <= unlikely or likely > 0:
            zeros = " (llama.cpp's server answers zeros)" if likely == unlikely == 0 else ""
            raise CannotScore(
                f"{self.server} gives {LIKELY.strip()!r} the log-probability {likely:.3g} and {UNLIKELY.strip()!r} "
                f"{unlikely:.3g} after one, two, three{zeros}: these are not likelihoods. Use vLLM, or {INSTEAD}"
            )

    def _cannot(self, refused: Refused) -> RemoteError:
        match refused.status:
            case 401 | 403:
                key = "refuses the API key" if self._key else "wants an API key (api_key)"
                return RemoteError(f"{self.server} {key}: {refused.said}")
            case 404 | 405:
                models = self.models()
                if models and self.model not in models:
                    return RemoteError(f"{self.server} has no model {self.model!r}; it has: {', '.join(models)}")
                return CannotScore(
                    f"{self.server} has no completions for {self.model!r} ({refused.said}); a server or model that "
                    f"only chats cannot score: {INSTEAD}"
                )
            case 400 | 422:
                return CannotScore(
                    f"{self.server} refuses to return log-probabilities of what it is given: {refused.said}. Use vLLM, "
                    f"or {INSTEAD}"
                )
        return refused

    # -- asking it ---------------------------------------------------------------------------------------------------

    def _read(self, texts: list[str], deadline: float) -> list[Row]:
        """How the server reads each text."""
        request = {
            "model": self.model,
            "prompt": texts,
            "max_tokens": self._max_tokens,
            "echo": True,
            "logprobs": 1,
            "temperature": 0,
        }
        answer = self.ask("/completions", request, deadline)
        try:
            choices = sorted(answer["choices"], key=lambda choice: choice["index"])
            rows = [(choice["text"], choice["logprobs"]) for choice in choices]
            if len(rows) != len(texts):
                raise RemoteError(f"{self.server} answered {len(rows)} of {len(texts)} texts")
            return [self._row(text, said, logprobs) for text, (said, logprobs) in zip(texts, rows, strict=True)]
        except (KeyError, TypeError, AttributeError, ValueError):
            raise RemoteError(f"{self.server} does not answer as OpenAI's completions do; {INSTEAD}") from None

    def _row(self, text: str, said: str, logprobs: dict[str, Any] | None) -> Row:
        """The answer to one text, less what the server added of its own."""
        tokens, values = ((logprobs or {}).get(name) or [] for name in ("tokens", "token_logprobs"))
        end = len(tokens) - self._max_tokens
        if end < 1 or len(values) != len(tokens) or text not in said:
            raise CannotScore(
                f"{self.server} returns no log-probabilities of what it is given (echo with logprobs), as llama.cpp's "
                f"server and most hosted models do not. Use vLLM, or {INSTEAD}"
            )
        return Row(tokens[:end], [None if value is None else float(value) for value in values[:end]])


class Refused(RemoteError):
    """An HTTP status that is an error."""

    def __init__(self, server: str, status: int, said: str) -> None:
        super().__init__(f"{server} answers {said}")
        self.status, self.said = status, said


class _NoneTold(Exception):
    """The server does not tell the likeliest next tokens."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would take the key to another server."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _cuts(tokens: Sequence[str], parts: Sequence[str]) -> list[Pieces] | None:
    """The tokens of each part of a text; None where one goes beyond its part. A token that a tokenizer puts before the
    text is none of it."""
    rest, cuts = list(tokens), list[Pieces]()
    while rest and len("".join(rest)) > len("".join(parts)):
        del rest[0]
    for part in parts:
        count, length = 0, 0
        while length < len(part) and count < len(rest):
            length, count = length + len(rest[count]), count + 1
        if "".join(rest[:count]) != part:
            return None
        cuts.append(tuple(rest[:count]))
        del rest[:count]
    return cuts


def _seconds(retry_after: str | None) -> float:
    """A Retry-After header that is a number; dates are left to our own pauses."""
    try:
        return max(0.0, float(retry_after or 0.0))
    except ValueError:
        return 0.0
