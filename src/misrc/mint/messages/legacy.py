"""What the drop-in of the predecessor's workflow client says, in English and Japanese."""

from __future__ import annotations

LEGACY_MESSAGES: dict[str, tuple[str, str]] = {
    "wf.usage": (
        "usage: mi-system-wf.py BASE_URL SITE_ID TOKEN COMMAND INPUT1:INPUT2:… RESULT1:RESULT2:… [PARAMETERS]",
        "使用方法: mi-system-wf.py BASE_URL サイトID トークン コマンド 入力1:入力2:… 結果1:結果2:… [パラメータ]",
    ),
    "wf.url": (
        "the base URL must be https://HOST or https://HOST:PORT, so that the token never travels in the clear; http:// is for a "
        "loopback address alone",
        "ベースURLは https://ホスト または https://ホスト:ポート の形で指定してください (トークンを平文で送らないため)。"
        "http:// はループバックアドレスにだけ使えます",
    ),
    "wf.token": (
        "the token must be 1 to 512 printable ASCII characters without spaces",
        "トークンは空白を含まない 1〜512 文字の印字可能な ASCII 文字で指定してください",
    ),
    "wf.token-file": (
        "the token cannot be read from {path}: {why}",
        "トークンを {path} から読み取れません: {why}",
    ),
    "wf.site": ("the site id is not well formed", "サイトIDの形式が正しくありません"),
    "wf.name": ("the name '{name}' {why}", "名前 '{name}' は使用できません: {why}"),
    "wf.setting": ("{name} must be {form}", "{name} は {form} の形で指定してください"),
    "wf.input-missing": (
        "{path}: no such file; the site is told that it is missing",
        "{path}: ファイルがありません。欠落として外部計算機に伝えます",
    ),
    "wf.input": ("{path}: cannot be sent: {why}", "{path}: 送信できません: {why}"),
    "wf.input-read": (
        "an input cannot be read, or changed while it was sent: {why}",
        "入力ファイルを読み取れないか、送信中に変更されました: {why}",
    ),
    "wf.too-large": (
        "{path}: too large: its base64 text would be 2 GiB or more; use `misrc run`",
        "{path}: 大きすぎます。base64 で 2 GiB 以上になるファイルは `misrc run` を使用してください",
    ),
    "wf.registered": ("registered as {job}", "登録しました: {job}"),
    "wf.progress": ("progress: {progress}", "進捗: {progress}"),
    "wf.retry": (
        "{call}: {why}; trying again in {seconds:.0f} s ({left} left)",
        "{call}: {why}。{seconds:.0f} 秒後に再試行します (残り {left} 回)",
    ),
    "wf.unreachable": ("{call}: the server cannot be reached: {why}", "{call}: サーバーに接続できません: {why}"),
    "wf.certificate": (
        "{call}: the server's certificate is not trusted ({why}); ask the operators of the server",
        "{call}: サーバー証明書を信頼できません ({why})。サーバー管理者に連絡してください",
    ),
    "wf.refused": (
        "{call}: the server refused, with code {code}: {why}",
        "{call}: サーバーに拒否されました (コード {code}): {why}",
    ),
    "wf.answer": (
        "{call}: the server's answer (HTTP {http}) is not of the protocol: {why}",
        "{call}: サーバーの応答 (HTTP {http}) が規定の形式ではありません: {why}",
    ),
    "wf.silent": (
        "the site reported an abnormal end and then nothing more for {seconds:.0f} s; giving up",
        "異常終了の報告後 {seconds:.0f} 秒間応答がないため中止します",
    ),
    "wf.no-result": ("{name}: not returned: {why}", "{name}: 返却されませんでした: {why}"),
    "wf.unasked": (
        "{name}: not asked for, and left aside",
        "{name}: 要求していないファイルのため破棄しました",
    ),
    "wf.abnormal": ("the calculation ended abnormally", "計算が異常終了しました"),
    "wf.done": ("done", "完了しました"),
    "wf.stopped": ("stopped", "停止しました"),
    "wf.disk": ("the results cannot be written: {why}", "結果を書き込めません: {why}"),
    "wf.deleted": ("the job is deleted at the server", "サーバー上のジョブを削除しました"),
    "wf.not-deleted": (
        "the job {job} could not be deleted at the server: {why}",
        "サーバー上のジョブ {job} を削除できませんでした: {why}",
    ),
}
