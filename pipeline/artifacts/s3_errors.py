"""What S3, or the way to it, complains of."""

from pipeline.wording import one_line
from stages.contract.context import InputError, StageError

DENIED = ("AccessDenied", "AllAccessDisabled", "403")
UNKNOWN_CREDENTIALS = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "401")
SKEWED = ("RequestTimeTooSkewed", "RequestExpired")


def explain(error: Exception, uri: str, bucket: str, where: str) -> Exception:
    """What S3 or the way to it complains of, in one line: what, where, how to fix it."""
    name, kind = code(error), type(error).__name__
    if kind in ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"):
        return InputError(
            f"there are no credentials for {uri}: set AWS_PROFILE, or AWS_ACCESS_KEY_ID and"
            f" AWS_SECRET_ACCESS_KEY ({one_line(error)})"
        )
    if kind == "ParamValidationError":
        return InputError(f"store={uri} can't be: {one_line(error)}")
    if name == "NoSuchBucket":
        return InputError(f"there is no bucket '{bucket}' at {where}; create it, or give another store=…")
    if name in UNKNOWN_CREDENTIALS:
        return InputError(f"{where} does not accept these credentials ({name}); renew them or choose AWS_PROFILE")
    if name in SKEWED:
        return InputError(f"the clock of this machine differs from that of {where} ({name}); set it, then run again")
    if name in DENIED:
        operation = getattr(error, "operation_name", "the request")
        verb = "written" if operation.startswith(("Put", "Upload", "Create", "Copy", "Delete")) else "read"
        return InputError(f"store={uri} may not be {verb} with these credentials ({operation}: {name})")
    if kind in ("EndpointConnectionError", "ConnectTimeoutError", "ConnectionClosedError", "SSLError"):
        return StageError(f"{where} does not answer ({one_line(error)}); check store_endpoint and the network")
    if name in ("404", "NoSuchKey"):
        return StageError(f"{uri} has lost a file while it was read ({one_line(error)})")
    return StageError(f"{uri}: {one_line(error)}")


def code(error: Exception) -> str:
    """S3's name of an error."""
    return str((getattr(error, "response", None) or {}).get("Error", {}).get("Code", ""))
