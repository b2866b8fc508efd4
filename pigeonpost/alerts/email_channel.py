"""Channel that delivers messages as e-mail through a mail server (RFC 5321), with TLS unless it is on this machine.

Runs in the Notifier's thread. Errors: NotSent, with the mail server's answer.
smtplib, email and ssl are imported when the first message is sent.
"""

from __future__ import annotations

from collections.abc import Sequence

from pigeonpost.alerts.contract import AlertChannel, AlertMessage, NotSent

ANSWER_S = 20.0


class EmailChannel(AlertChannel):
    """E-mail to some recipients, through one mail server."""

    def __init__(
        self, host: str, port: int, tls: str, user: str, password: str, sender: str, to: Sequence[str]
    ) -> None:
        """
        port  0: the usual one of `tls`
        tls   "starttls" (port 587), "tls" from the first byte (465), or "none" (25)
        """
        self.place = f"mail by {host}"
        self._host, self._tls, self._user, self._password = host, tls, user, password
        self._port = port or {"starttls": 587, "tls": 465, "none": 25}[tls]
        self._sender, self._to = sender, to

    def send(self, message: AlertMessage) -> None:
        import smtplib
        import ssl
        from email.message import EmailMessage
        from email.utils import formatdate, make_msgid

        mail = EmailMessage()
        mail["From"], mail["To"], mail["Subject"] = self._sender, ", ".join(self._to), _one_line(message.subject)
        mail["Date"], mail["Message-ID"] = formatdate(localtime=True), make_msgid(domain="pigeonpost.invalid")
        mail.set_content(message.text)
        try:
            context = ssl.create_default_context()
            connection = (
                smtplib.SMTP_SSL(self._host, self._port, timeout=ANSWER_S, context=context)
                if self._tls == "tls"
                else smtplib.SMTP(self._host, self._port, timeout=ANSWER_S)
            )
            with connection:
                if self._tls == "starttls":
                    connection.starttls(context=context)
                if self._user:
                    connection.login(self._user, self._password)
                connection.send_message(mail)
        except (OSError, smtplib.SMTPException) as error:
            raise NotSent(f"{self.place}: {error}") from None


def _one_line(text: str) -> str:
    """Return a subject without line ends, each of which would begin another header (RFC 5322, section 2.2)."""
    return " ".join(text.split())[:200]
