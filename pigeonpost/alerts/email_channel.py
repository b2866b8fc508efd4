"""Channel that sends messages as e-mail through a mail server (SMTP, RFC 5321), with or without TLS.

It runs in the Notifier's thread. Errors: NotSent, with the response of the mail server.
The modules smtplib, email and ssl are imported when the first message is sent.
"""

from __future__ import annotations

from collections.abc import Sequence

from pigeonpost.alerts.contract import AlertChannel, AlertMessage, NotSent

ANSWER_S = 20.0  # time limit for each response of the mail server


class EmailChannel(AlertChannel):
    """Channel for e-mail to one or more recipients through one mail server."""

    def __init__(
        self, host: str, port: int, tls: str, user: str, password: str, sender: str, to: Sequence[str]
    ) -> None:
        """Create the channel without connecting.

        Args:
            host: Host name of the mail server.
            port: Port of the mail server; 0 for the default port of `tls`.
            tls: Encryption: "starttls" (default port 587), "tls" from the beginning (465), or "none" (25).
            user: User name for the mail server, or an empty string.
            password: Password of the user.
            sender: Sender address.
            to: Addresses of the recipients.
        """
        self.place = f"mail server {host}"
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
    """Return a subject as one line of at most 200 characters. A line break would begin another header (RFC 5322)."""
    return " ".join(text.split())[:200]
