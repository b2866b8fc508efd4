"""Channel that sends messages as e-mail through a mail server (SMTP, RFC 5321), with or without TLS.

It runs in the thread that delivers to this mail server. Errors: NotSent and Refused, with the response of the mail
server. The modules smtplib, email and ssl are imported when the first message is sent.

Each recipient is a channel with its own queue, and receives mails of its own. So a recipient that is refused delays no
other one, and no other one receives a message twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from pigeonpost.alerts.contract import AlertChannel, AlertMessage, NotSent, Refused
from pigeonpost.alerts.recipients import EVERYTHING, Filter
from pigeonpost.core.redact import hide_these

if TYPE_CHECKING:
    import smtplib
    from email.message import EmailMessage

ANSWER_S = 20.0  # time limit for each response of the mail server
# 530: the server requires STARTTLS or a password first. This is a fault of the settings, not of the message.
_NEEDS_LOGIN, _CLOSES, _TOO_LARGE = 530, 421, 552
_TLS_PORT = 465  # RFC 8314, section 7.3
_LOGGED_IN, _GO_ON, _IS_LOGGED_IN = 235, 334, 503  # responses to AUTH (RFC 4954, section 4)


class MailServer(NamedTuple):
    """Settings of the mail server.

    Attributes:
        host: Host name of the mail server.
        port: Port of the mail server; 0 for the default port of `tls`.
        tls: Encryption: "starttls" (default port 587), "tls" from the beginning (465), or "none" (25).
        user: User name for the mail server, or an empty string.
        password: Password of the user.
        sender: Sender address.
    """

    host: str
    port: int
    tls: str
    user: str
    password: str
    sender: str


class EmailChannel(AlertChannel):
    """Channel for e-mail to one recipient."""

    kind = "mail"

    def __init__(
        self,
        server: MailServer,
        to: str,
        chosen: Filter = EVERYTHING,
        current: Callable[[str], str] = lambda node: node,
    ) -> None:
        """Create the channel without connecting.

        Args:
            server: The mail server.
            to: Address of the recipient.
            chosen: Filter of the messages for this recipient.
            current: Function that returns the current name of a node; the filter or a message may contain a former one.
        """
        self.place = f"mail server {server.host}"
        self.key, self.name = f"mail:{to}", to
        self._server, self._to, self._chosen, self._current = server, to, chosen, current
        self._port = server.port or {"starttls": 587, "tls": _TLS_PORT, "none": 25}[server.tls]

    def select(self, message: AlertMessage) -> AlertMessage | None:
        return self._chosen.select(message, self._current)

    def send(self, message: AlertMessage) -> None:
        import contextlib
        import smtplib

        try:
            mail = self._mail(message)
        except ValueError as error:  # headers that the module email cannot write
            raise Refused(f"{self.place}: the message cannot be written as a mail: {error}") from None
        try:
            connection = self._connect()
            try:
                self._hand_over(connection, mail)
            finally:  # the server has accepted or refused the mail: an error of QUIT must not send it again
                with contextlib.suppress(OSError, smtplib.SMTPException):
                    connection.quit()
                connection.close()
        except smtplib.SMTPResponseException as error:
            raise NotSent(f"{self.place}: {_answer(error.smtp_code, error.smtp_error)}") from None
        except (OSError, smtplib.SMTPException, UnicodeError) as error:  # UnicodeError: an invalid host name
            raise (
                error if isinstance(error, NotSent) else NotSent(f"{self.place}: {_reason(error)}{self._remedy(error)}")
            ) from None

    def _remedy(self, error: Exception) -> str:
        import ssl

        tls = self._server.tls
        if isinstance(error, ssl.SSLCertVerificationError):
            return ": the certificate must be valid for [mail] host, and signed by an authority known to this system"
        if isinstance(error, ssl.SSLError) and tls == "tls":
            return ': set [mail] tls = "starttls" if the mail server does not begin with TLS'
        return ': for this port, set [mail] tls = "tls"' if self._port == _TLS_PORT and tls != "tls" else ""

    def _connect(self) -> smtplib.SMTP:
        import smtplib
        import ssl

        host, tls = self._server.host, self._server.tls
        context = None if tls == "none" else ssl.create_default_context()
        connection = (
            smtplib.SMTP_SSL(host, self._port, timeout=ANSWER_S, context=context)
            if tls == "tls"
            else smtplib.SMTP(host, self._port, timeout=ANSWER_S)
        )
        try:
            if tls == "starttls":
                connection.starttls(context=context)
            if self._server.user:
                self._log_in(connection)
        except smtplib.SMTPNotSupportedError as error:
            connection.close()
            raise NotSent(f'{self.place}: {error} Set [mail] tls = "tls" or "none", or remove [mail] user') from None
        except smtplib.SMTPAuthenticationError as error:
            connection.close()
            said = _answer(error.smtp_code, self._without_password(_bytes(error.smtp_error)))
            raise NotSent(f"{self.place}: {said}: check [mail] user and the password") from None
        except BaseException:
            connection.close()
            raise
        return connection

    def _log_in(self, connection: smtplib.SMTP) -> None:
        """Log in. smtplib only encodes ASCII, but user names and passwords are UTF-8 (RFC 4616, section 2)."""
        import smtplib
        from base64 import b64encode

        user, password = self._server.user, self._server.password
        if (user + password).isascii():
            connection.login(user, password)
            return
        connection.ehlo_or_helo_if_needed()
        offered = connection.esmtp_features.get("auth", "").upper().split()
        if "PLAIN" in offered:
            code, text = connection.docmd("AUTH", "PLAIN " + b64encode(f"\0{user}\0{password}".encode()).decode())
        elif "LOGIN" in offered:
            code, text = connection.docmd("AUTH", "LOGIN " + b64encode(user.encode()).decode())
            if code == _GO_ON:
                code, text = connection.docmd(b64encode(password.encode()).decode())
        else:
            raise NotSent(f"{self.place}: it accepts only ASCII characters in [mail] user and the password")
        if code not in (_LOGGED_IN, _IS_LOGGED_IN):
            raise smtplib.SMTPAuthenticationError(code, text)

    def _without_password(self, text: bytes) -> str:
        """Return the response to a login, which may repeat the password, also in Base64 (RFC 4616; AUTH LOGIN)."""
        from base64 import b64encode

        user, password = self._server.user, self._server.password
        coded = {b64encode(part.encode()).decode() for part in (password, f"\0{user}\0{password}")}
        return hide_these(text.decode("utf-8", "replace"), {password, *coded})

    def _hand_over(self, connection: smtplib.SMTP, mail: EmailMessage) -> None:
        """Send `mail`. Raise Refused if the response is about it or its recipient, and is permanent."""
        import smtplib

        code, text = 0, b""
        try:
            connection.send_message(mail, mail["From"], [mail["To"]])
            return
        except smtplib.SMTPNotSupportedError:  # SMTPUTF8
            said = "it accepts only ASCII characters in addresses: set [mail] from and to"
            raise NotSent(f"{self.place}: {said}, not {mail['From']} and {mail['To']}") from None
        except smtplib.SMTPRecipientsRefused as error:
            ((code, text),) = error.recipients.values()
        except smtplib.SMTPSenderRefused as error:
            if error.smtp_code != _TOO_LARGE:
                raise  # a fault of the settings: the messages wait until it is corrected
            code, text = _TOO_LARGE, _bytes(error.smtp_error)
        except smtplib.SMTPDataError as error:
            code, text = error.smtp_code, _bytes(error.smtp_error)
        said = f"{self.place}: {self._to}: {_answer(code, text)}"
        if code >= 500 and code != _NEEDS_LOGIN:
            raise Refused(said)
        raise NotSent(said, is_answer=code not in (_CLOSES, _NEEDS_LOGIN))

    def _mail(self, message: AlertMessage) -> EmailMessage:
        from email.message import EmailMessage
        from email.policy import SMTP
        from email.utils import formatdate, make_msgid

        subject = _one_line(message.subject)
        # A long subject in ASCII stays on one line. If it were folded, the first line could be empty, which some spam
        # filters reject. Encoded words must be folded (RFC 2047, section 2).
        # 7bit: a mail server without 8BITMIME accepts only ASCII (RFC 6152).
        policy = SMTP.clone(cte_type="7bit")
        mail = EmailMessage(policy.clone(max_line_length=_LINE) if subject.isascii() else policy)
        mail["From"], mail["To"] = _ascii_domain(self._server.sender), _ascii_domain(self._to)
        mail["Subject"] = subject
        mail["Date"] = formatdate(localtime=True)
        # The same id in each attempt, so that the recipient's mail program can recognise a mail that arrives twice.
        mail["Message-ID"] = f"<{message.id}@pigeonpost.invalid>" if message.id else make_msgid("", _DOMAIN)
        mail["Auto-Submitted"] = "auto-generated"  # RFC 3834: no automatic replies
        mail.set_content(_plain(message.text))
        if message.html:
            mail.add_alternative(_plain(message.html), subtype="html")
        return mail


_DOMAIN = "pigeonpost.invalid"
# Python's codec "idna" is that of 2003, which changes these letters: it would select another domain.
_CHANGED = "\u00df\u03c2\u200c\u200d"
_LINE = 998  # characters in a line (RFC 5322, section 2.1.1)


def _ascii_domain(address: str) -> str:
    """Return `address` with the domain in ASCII, which each mail server accepts (RFC 5890, section 2.3.2.1)."""
    local, _, domain = address.rpartition("@")
    if any(letter in domain for letter in _CHANGED):
        return address
    try:
        return f"{local}@{domain.encode('idna').decode()}"
    except UnicodeError:
        return address


def _answer(code: int, text: bytes | str) -> str:
    """Return the response of a mail server as one line: `550 no such user`."""
    if code < 0:  # smtplib: a response that does not begin with a number
        return f"it does not answer as a mail server: {_one_line(_bytes(text).decode('utf-8', 'replace'))}"
    return f"{code} {_one_line(_bytes(text).decode('utf-8', 'replace'))}"


def _reason(error: Exception) -> str:
    """Return the reason of an error in one line, without the number of the error."""
    return _one_line(str(getattr(error, "strerror", None) or error) or type(error).__name__)


def _bytes(text: bytes | str) -> bytes:
    return text.encode() if isinstance(text, str) else text


def _plain(text: str) -> str:
    """Return `text` without unpaired surrogates, which cannot be encoded."""
    return text.encode("utf-8", "replace").decode()


def _one_line(text: str) -> str:
    """Return `text` as one printable line of at most 200 characters. A line break would begin another header."""
    shown = "".join(letter if letter.isprintable() or letter.isspace() else "\ufffd" for letter in _plain(text))
    return " ".join(shown.split())[:200]
