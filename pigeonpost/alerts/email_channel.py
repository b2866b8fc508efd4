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

if TYPE_CHECKING:
    import smtplib
    from email.message import EmailMessage

ANSWER_S = 20.0  # time limit for each response of the mail server
# 530: the server requires STARTTLS or a password first. This is a fault of the settings, not of the message.
_NEEDS_LOGIN, _CLOSES, _TOO_LARGE = 530, 421, 552


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
            current: Function that returns the current name of a node; the filter may contain a former one.
        """
        self.place = f"mail server {server.host}"
        self.key, self.name = f"mail:{to}", to
        self._server, self._to, self._chosen, self._current = server, to, chosen, current
        self._port = server.port or {"starttls": 587, "tls": 465, "none": 25}[server.tls]

    def select(self, message: AlertMessage) -> AlertMessage | None:
        return self._chosen._replace(nodes=[self._current(one) for one in self._chosen.nodes]).select(message)

    def send(self, message: AlertMessage) -> None:
        import contextlib
        import smtplib

        try:
            mail = self._mail(message)
            connection = self._connect()
            try:
                self._hand_over(connection, mail)
            finally:  # the server has accepted or refused the mail: an error of QUIT must not send it again
                with contextlib.suppress(OSError, smtplib.SMTPException):
                    connection.quit()
                connection.close()
        except smtplib.SMTPResponseException as error:
            raise NotSent(f"{self.place}: {_answer(error.smtp_code, error.smtp_error)}") from None
        except (OSError, smtplib.SMTPException) as error:
            raise error if isinstance(error, NotSent) else NotSent(f"{self.place}: {_reason(error)}") from None
        except ValueError as error:  # headers that the module email cannot write
            raise Refused(f"{self.place}: the message cannot be written as a mail: {error}") from None

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
                connection.login(self._server.user, self._server.password)
        except smtplib.SMTPNotSupportedError as error:
            connection.close()
            raise NotSent(f'{self.place}: {error} Set [mail] tls = "tls" or "none", or remove [mail] user') from None
        except smtplib.SMTPAuthenticationError as error:
            connection.close()
            said = _answer(error.smtp_code, error.smtp_error)
            raise NotSent(f"{self.place}: {said}: check [mail] user and the password") from None
        except BaseException:
            connection.close()
            raise
        return connection

    def _hand_over(self, connection: smtplib.SMTP, mail: EmailMessage) -> None:
        """Send `mail`. Raise Refused if the response is about it or its recipient, and is permanent."""
        import smtplib

        code, text = 0, b""
        try:
            connection.send_message(mail, self._server.sender, [self._to])
            return
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
        mail = EmailMessage(SMTP.clone(max_line_length=_LINE) if subject.isascii() else SMTP)
        mail["From"], mail["To"], mail["Subject"] = self._server.sender, self._to, subject
        mail["Date"] = formatdate(localtime=True)
        # The same id in each attempt, so that the recipient's mail program can recognise a mail that arrives twice.
        mail["Message-ID"] = f"<{message.id}@pigeonpost.invalid>" if message.id else make_msgid("", _DOMAIN)
        mail["Auto-Submitted"] = "auto-generated"  # RFC 3834: no automatic replies
        mail.set_content(_plain(message.text))
        if message.html:
            mail.add_alternative(_plain(message.html), subtype="html")
        return mail


_DOMAIN = "pigeonpost.invalid"
_LINE = 998  # characters in a line (RFC 5322, section 2.1.1)


def _answer(code: int, text: bytes | str) -> str:
    """Return the response of a mail server as one line: `550 no such user`."""
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
    """Return a subject as one line of at most 200 characters. A line break would begin another header (RFC 5322)."""
    return " ".join(_plain(text).split())[:200]
