"""Messages for people, in English and Japanese. Every key has both; a test holds their placeholders equal."""

from __future__ import annotations

from .languages import language as language
from .legacy import LEGACY_MESSAGES
from .module import MODULE_MESSAGES
from .site import SITE_MESSAGES

# Longer than most paths; a longer one shows where it begins and ends.
MOST_SHOWN = 500

MESSAGES: dict[str, tuple[str, str]] = {
    "site.unknown": (
        "there is no site '{site}' in {inventory}; known: {known}",
        "サイト '{site}' は {inventory} に定義されていません。定義済み: {known}",
    ),
    "inventory.missing": (
        "no inventory found; give --inventory DIR, or set MISRC_INVENTORY (looked in {places})",
        "インベントリが見つかりません。--inventory DIR か MISRC_INVENTORY を指定してください (探した場所: {places})",
    ),
    "playbook.unknown": ("there is no playbook '{name}'", "プレイブック '{name}' はありません"),
    "bundle.missing": (
        "'{name}' is needed and not installed here; install misrc with all that it needs, then bundle",
        "必要な '{name}' がここにインストールされていません。misrc を依存関係ごとインストールしてから実行してください",
    ),
    "bundle.record": (
        "'{name}' was not installed from a wheel, so no wheel can be made of it; install misrc with pip in a virtual environment",
        "'{name}' は wheel からインストールされていないため wheel を作れません。仮想環境に pip でインストールしてください",
    ),
    "bundle.changed": (
        "'{name}': {path} is not what was installed; install it again, then bundle",
        "'{name}': {path} がインストール時と異なります。再インストールしてから実行してください",
    ),
    "bundle.folder": (
        "{path} is not empty; name a new folder, or a file that ends with .tar",
        "{path} は空ではありません。新しいフォルダか .tar で終わるファイル名を指定してください",
    ),
    "extra.missing": (
        "{module} is not installed here; the API server needs more than misrc itself: pip install 'misrc[api]'",
        "{module} がインストールされていません。APIサーバーには追加のパッケージが必要です: pip install 'misrc[api]'",
    ),
    "bundle.write": ("{path} cannot be written: {why}", "{path} に書き込めません: {why}"),
    "program.unknown": (
        "site '{site}' has no program '{program}'; declared: {known}",
        "サイト '{site}' にプログラム '{program}' はありません。宣言済み: {known}",
    ),
    "site.expired": (
        "the agreement with site '{site}' ended on {day}: no new jobs; ask {contact}",
        "サイト '{site}' の利用期限は {day} に終了しました。新しいジョブは実行できません。連絡先: {contact}",
    ),
    "pair.malformed": (
        "{option} needs NAME=VALUE, not '{value}'",
        "{option} は NAME=VALUE の形で指定してください ('{value}')",
    ),
    "pair.twice": ("{option} names '{name}' twice", "{option} に '{name}' が二度指定されています"),
    "input.undeclared": (
        "'{program}' takes no input named '{name}'; declared: {known}",
        "'{program}' の入力に '{name}' はありません。宣言済み: {known}",
    ),
    "input.name": ("the input name '{name}' {why}", "入力名 '{name}' は使用できません: {why}"),
    "input.alike": ("the inputs' names cannot be: {why}", "入力名の組み合わせは使用できません: {why}"),
    "input.required": (
        "the required input '{name}' is not given (--in {name}=FILE)",
        "必須の入力 '{name}' がありません (--in {name}=FILE)",
    ),
    "input.missing": ("{path}: no such file (input '{name}')", "{path}: ファイルがありません (入力 '{name}')"),
    "input.list_too_long": (
        "--in-list {path}: the list is longer than {most}",
        "--in-list {path}: 一覧が {most} を超えています",
    ),
    "input.unreadable": ("{path}: cannot be read (input '{name}')", "{path}: 読み取れません (入力 '{name}')"),
    "input.folder": (
        "{path}: is not a plain file (input '{name}')",
        "{path}: 通常のファイルではありません (入力 '{name}')",
    ),
    "input.changed": (
        "{path} changed while it was being sent (input '{name}'); run the same command again when it is complete",
        "{path} が送信中に変更されました (入力 '{name}')。書き込みの完了後に同じコマンドを再実行してください",
    ),
    "argument.refused": ("'{program}': {why}", "'{program}': {why}"),
    "output.undeclared": (
        "'{program}' returns no output named '{name}'; declared: {known}",
        "'{program}' の出力に '{name}' はありません。宣言済み: {known}",
    ),
    "output.copy": (
        "--out {name}={path} cannot be written: {why}",
        "--out {name}={path} に書き込めません: {why}",
    ),
    "results.folder": (
        "the results folder {path} cannot be used: {why}",
        "結果フォルダ {path} を使用できません: {why}",
    ),
    "results.space": (
        "{path}: {needed} of results do not fit into {free} of free space; make room, then run the same command again",
        "{path}: 結果 {needed} に対して空き容量が {free} しかありません。容量を確保して同じコマンドを再実行してください",
    ),
    "local.disk": (
        "this machine's disk failed: {why}; mend it, then run the same command again (job {job})",
        "このマシンのディスクでエラーが発生しました: {why}。対処後に同じコマンドを再実行してください (ジョブ {job})",
    ),
    "identity.missing": (
        "no job key for site '{site}' (looked for {path}); MInt operations make one when they add a site",
        "サイト '{site}' のジョブ鍵がありません ({path})。MInt運用チームに連絡してください",
    ),
    "job.unknown": ("there is no job {job} here", "ジョブ {job} は存在しません"),
    "record.damaged": (
        "the record {path} cannot be read ({why}); move its folder away and make the same call again: the site knows the job",
        "記録 {path} を読み取れません ({why})。そのフォルダを移動して同じコマンドを再実行してください: ジョブはサイトが覚えています",
    ),
    "identity.unusable": (
        "the job key of site '{site}' cannot be used: {why}; ask MInt operations",
        "サイト '{site}' のジョブ鍵を使用できません: {why}。MInt運用チームに連絡してください",
    ),
    "folder.gone": (
        "the current folder does not exist any more; go to another one",
        "現在のフォルダはもう存在しません。別のフォルダに移動してください",
    ),
    "job.malformed": ("'{job}' is not a job id", "'{job}' はジョブIDではありません"),
    "job.other": (
        "job {job} was made by another call; give the same site, program, inputs and arguments, or no --job",
        "ジョブ {job} は別の呼び出しで作成されました。同じ指定で実行するか --job を外してください",
    ),
    "job.done": (
        "already done as job {job}; the results are in {results} (--new computes again)",
        "ジョブ {job} で計算済みです。結果は {results} にあります (--new で再計算します)",
    ),
    "job.resumed": ("resuming job {job} ({state})", "ジョブ {job} を再開します ({state})"),
    "job.created": ("job {job}: {site} / {program}", "ジョブ {job}: {site} / {program}"),
    "job.state": ("{state}", "{state}"),
    "job.waiting": ("{state}, {elapsed} so far", "{state} (経過 {elapsed})"),
    "job.held_back": ("{state}, {elapsed} so far: {why}", "{state} (経過 {elapsed}): {why}"),
    "wait.window": ("waits for the site's next window, {when}", "サイトの次の実行可能時間帯を待機中 ({when} から)"),
    "wait.agent": ("waits for the site's agent", "サイトのエージェントを待機中"),
    "wait.silent": (
        "the site's agent has not been heard since {when}",
        "サイトのエージェントから {when} 以降応答がありません",
    ),
    "wait.frozen": (
        "waits because the site is frozen; it starts no jobs until it is thawed",
        "サイトが凍結中のため待機しています。解除されるまで開始されません",
    ),
    "job.unreachable": (
        "{site} cannot be reached ({why}); last known at {known}: {state}; trying again until {until}",
        "{site} に接続できません ({why})。最終確認 {known}: {state}。{until} まで再試行します",
    ),
    "job.succeeded": (
        "done: job {job}, {count} files in {results}",
        "完了: ジョブ {job}、{count} ファイルを {results} に保存しました",
    ),
    "job.failed": (
        "the program failed at {site}: {why} (job {job}; its log is in {results})",
        "{site} でプログラムが異常終了しました: {why} (ジョブ {job}、ログは {results})",
    ),
    "job.output_missing": (
        "the program did not return the required output '{name}' (job {job}); ask {contact}",
        "必須の出力 '{name}' が返却されませんでした (ジョブ {job})。連絡先: {contact}",
    ),
    "job.copy_missing": (
        "the optional result '{name}' did not come: nothing was copied to {path}",
        "任意の結果 '{name}' は返却されませんでした。{path} へのコピーはありません",
    ),
    "job.cancelled": ("cancelled: job {job}", "キャンセルしました: ジョブ {job}"),
    "job.stopped": (
        "{site} stopped job {job}: the site is frozen; ask {contact}",
        "{site} がジョブ {job} を停止しました: サイトは凍結中です。連絡先: {contact}",
    ),
    "job.ended_before": (
        "stopped; job {job} had ended before it could be cancelled: the same command, or 'misrc fetch', brings its results",
        "停止しました。ジョブ {job} はキャンセル前に終了していました。同じコマンドか 'misrc fetch' で結果を取得できます",
    ),
    "run.stopped": ("stopped before a job was begun", "ジョブの開始前に停止しました"),
    "job.left": (
        "stopped; job {job} is left as it is: the same command goes on with it",
        "停止しました。ジョブ {job} はそのままです。同じコマンドで続行できます",
    ),
    "job.cancel_pending": (
        "job {job} is to be cancelled, but {site} cannot be reached; 'misrc tend' will do it",
        "ジョブ {job} をキャンセルできませんでした ({site} に接続不可)。'misrc tend' が後で実行します",
    ),
    "job.lost": (
        "job {job} is lost at {site}: {why}; ask {contact}",
        "ジョブ {job} は {site} で失われました: {why}。連絡先: {contact}",
    ),
    "job.refused": ("{site} refused job {job}: {why}", "{site} がジョブ {job} を拒否しました: {why}"),
    "results.undeclared": (
        "{count} returned files were not declared and were not taken",
        "宣言されていない {count} 個のファイルは受け取りませんでした",
    ),
    "results.mismatch": (
        "what arrived from {site} does not match its manifest (job {job}); ask {contact}",
        "{site} から届いたファイルがマニフェストと一致しません (ジョブ {job})。連絡先: {contact}",
    ),
    "receipt.wrong": (
        "the receipt of job {job} does not agree with what was sent and received: {why}; ask {contact}",
        "ジョブ {job} の受領書が送受信の記録と一致しません: {why}。連絡先: {contact}",
    ),
    "ssh.host_key": (
        "{site} ({address}) shows a host key that is not the declared one; nothing was sent. Ask {contact} whether it was changed",
        "{site} ({address}) のホスト鍵が宣言と異なります。何も送信していません。{contact} に確認してください",
    ),
    "contact.unknown": ("the site", "サイト管理者"),
    "ssh.denied": (
        "{site} ({address}) does not accept MInt's job key; ask {contact}",
        "{site} ({address}) がMIntのジョブ鍵を受け付けません。連絡先: {contact}",
    ),
    "ssh.unreachable": (
        "{site} ({address}) cannot be reached: {why}; ask {contact}",
        "{site} ({address}) に接続できません: {why}。連絡先: {contact}",
    ),
    "retry.pause": (
        "{why}; trying again in {seconds} s (tries left: {left})",
        "{why}。{seconds} 秒後に再試行します (残り {left} 回)",
    ),
    "ssh.protocol": (
        "{site} ({address}) does not answer as misrc's gate does: {why}; ask {contact}",
        "{site} ({address}) の応答がmisrcのゲートのものではありません: {why}。連絡先: {contact}",
    ),
    "api.certificate": (
        "the API server of {site} ({address}) shows a certificate that is not trusted here: {why}; nothing was sent. "
        "Check 'api.ca', or ask {contact}",
        "{site} のAPIサーバー ({address}) の証明書を信頼できません: {why}。何も送信していません。'api.ca' を確認するか "
        "{contact} に連絡してください",
    ),
    "api.denied": (
        "the API server of {site} ({address}) does not accept the token of user '{user}'; MInt operations give a new one",
        "{site} のAPIサーバー ({address}) が利用者 '{user}' のトークンを受け付けません。MInt運用チームに連絡してください",
    ),
    "api.unreachable": (
        "the API server of {site} ({address}) cannot be reached: {why}",
        "{site} のAPIサーバー ({address}) に接続できません: {why}",
    ),
    "api.full": (
        "the API server of {site} ({address}) has no room left; MInt operations make some, and it goes on",
        "{site} のAPIサーバー ({address}) の空き容量がありません。空きができ次第続行します",
    ),
    "api.protocol": (
        "{address} does not answer as misrc's API server does: {why}; check 'api.url' of {site}",
        "{address} の応答がmisrcのAPIサーバーのものではありません: {why}。{site} の 'api.url' を確認してください",
    ),
    "token.missing": (
        "no token for site '{site}': there is no {path}, and {variable} is not set; MInt operations give one",
        "サイト '{site}' のトークンがありません: {path} も環境変数 {variable} もありません。MInt運用チームに連絡してください",
    ),
    "token.open": (
        "{path}: others than its owner can read the token; chmod 600, and have the token replaced",
        "{path}: 所有者以外がトークンを読めます。chmod 600 とし、トークンを交換してください",
    ),
    "token.unusable": ("{path}: the token cannot be used: {why}", "{path}: トークンを使えません: {why}"),
    "signing.missing": (
        "there is no signing key ({path}); MInt operations make one with 'misrc signing-key make'",
        "署名鍵がありません ({path})。MInt運用チームが 'misrc signing-key make' で作成します",
    ),
    "signing.no_next": (
        "there is no key to follow ({path}); 'misrc signing-key next' makes one",
        "次の鍵がありません ({path})。'misrc signing-key next' で作成してください",
    ),
    "transfer.too_much": (
        "{site} sends more than its own list of results says; nothing of it is used. Ask the site",
        "{site} が自身の結果一覧より多くのデータを送ってきたため、何も使用しません。サイトに確認してください",
    ),
    "transfer.failed": ("the transfer with {site} was cut: {why}", "{site} との転送が中断しました: {why}"),
    "job.stuck": (
        "{site} took job {job} and leaves it {state}, although it was told to start it; ask {contact}",
        "{site} はジョブ {job} を受け付けましたが、開始の指示後も {state} のままです。連絡先: {contact}",
    ),
    "give_up": (
        "{site} was not reachable for {hours}; the job may still be running: the same command, or 'misrc tend', goes on",
        "{site} に {hours} 接続できませんでした。ジョブは実行中の可能性があります。同じコマンドか 'misrc tend' で続行できます",
    ),
    "playbook.failed": (
        "the run playbook failed: {why} (see {log})",
        "実行プレイブックが失敗しました: {why} ({log} を参照)",
    ),
    "dry.accepted": (
        "{site} would accept this job ({count} inputs, {size}; {free} free there)",
        "{site} はこのジョブを受け付けます (入力 {count} 個、{size}、空き {free})",
    ),
    "dry.api": (
        "this call ({count} inputs, {size}) is as this node and the API server declare {site}; not checked, because only "
        "the site's agent can, when it takes the job: its policy, the job's signature, its free space",
        "この呼び出し (入力 {count} 個、{size}) は、このノードとAPIサーバーにある {site} の定義に合っています。未確認: サイトの"
        "ポリシー、ジョブの署名、空き容量。これらはエージェントがジョブを受け取るときに判断します",
    ),
    "dry.undeclared": (
        "{site}: the API server's declaration does not allow this job: compare it with the one of this node",
        "{site}: APIサーバーの定義ではこのジョブは許可されていません。このノードの定義と比べてください",
    ),
    "phase.stage": ("sending inputs", "入力を送信中"),
    "phase.execute": ("starting", "開始処理中"),
    "phase.retrieve": ("fetching results", "結果を取得中"),
    "tend.nothing": ("nothing to tend", "処理すべきジョブはありません"),
    "E03": ("the site does not know this job", "サイトにこのジョブはありません"),
    "E04": ("the site could not read the job spec", "ジョブ定義が不正です"),
    "E05": ("the job id is already used for another job", "このジョブIDは別のジョブで使用済みです"),
    "E06": ("not possible in the job's present state", "現在のジョブ状態では実行できません"),
    "E07": ("the site has deleted this job", "このジョブはサイトで削除済みです"),
    "E10": (
        "its policy does not allow this program; ask {contact}",
        "サイトのポリシーで許可されていないプログラムです。連絡先: {contact}",
    ),
    "E11": (
        "its policy does not allow an argument of this call; ask {contact}",
        "サイトのポリシーで許可されていない引数があります。連絡先: {contact}",
    ),
    "E12": (
        "its policy does not take an input of this name; ask {contact}",
        "サイトのポリシーで許可されていない入力名があります。連絡先: {contact}",
    ),
    "E13": (
        "the program there is not the one that was agreed; ask {contact}",
        "サイトのプログラムが合意したものと異なります。連絡先: {contact}",
    ),
    "E14": (
        "the inputs that arrived are not the announced ones; run the same command again, which sends what differs",
        "届いた入力が通知内容と一致しません。同じコマンドを再実行すると、異なるものを送り直します",
    ),
    "E15": (
        "the gate there belongs to another site id; ask {contact}",
        "接続先のゲートは別のサイトIDのものです。連絡先: {contact}",
    ),
    "E16": (
        "the site takes only jobs that MInt signed, and this one is not signed with a key that it knows; "
        "declare 'signed: true' for the site and give {contact} the key that 'misrc signing-key show' prints",
        "サイトは署名済みのジョブだけを受け付けますが、有効な署名がありません。サイト定義に 'signed: true' を書き、"
        "'misrc signing-key show' の公開鍵を伝えてください。連絡先: {contact}",
    ),
    "E17": (
        "the job was signed too long ago, or this machine's clock or the site's is wrong; make the same call again, "
        "else ask {contact}",
        "ジョブの署名が古すぎるか、時計が合っていません。同じコマンドを再実行してください。連絡先: {contact}",
    ),
    "E20": (
        "the inputs are larger than the site allows; ask {contact}",
        "入力がサイトの上限サイズを超えています。連絡先: {contact}",
    ),
    "E21": (
        "there are more inputs than the site allows; ask {contact}",
        "入力ファイル数がサイトの上限を超えています。連絡先: {contact}",
    ),
    "E22": (
        "too many jobs are waiting there; try again later, or ask {contact}",
        "サイトの待機ジョブが上限に達しています。後で再試行するか {contact} に連絡してください",
    ),
    "E23": (
        "the site has not enough free disk space; ask {contact}",
        "サイトのディスク容量が不足しています。連絡先: {contact}",
    ),
    "E24": (
        "the site's number of jobs for today is used up; run the same command again tomorrow, or ask {contact}",
        "サイトの本日のジョブ数の上限に達しました。明日同じコマンドを再実行するか {contact} に連絡してください",
    ),
    "E25": (
        "the results do not fit into what may leave the site today; run the same command again tomorrow, or ask {contact}",
        "結果がサイトの本日の持ち出し量の上限を超えます。明日同じコマンドを再実行するか {contact} に連絡してください",
    ),
    "E26": ("the site is busy with an earlier transfer of this job", "このジョブの以前の転送がまだ終了していません"),
    "E30": ("the site's own configuration is broken; ask {contact}", "サイトの設定に問題があります。連絡先: {contact}"),
    "E31": (
        "the site cannot write its ledger, so nothing starts or leaves; ask {contact}",
        "サイトが台帳に記録できないため処理を開始できません。連絡先: {contact}",
    ),
    "E32": (
        "the site's rsync is missing or too old (3.5.0 is needed); ask {contact}",
        "サイトのrsyncがないか古いです (3.5.0以上が必要)。連絡先: {contact}",
    ),
    "E33": (
        "the site is frozen: no new jobs; ask {contact}",
        "サイトは凍結中で新しいジョブを受け付けません。連絡先: {contact}",
    ),
    "E34": (
        "the gate there runs as root, which it refuses; ask {contact}",
        "ゲートがrootで動作しています。連絡先: {contact}",
    ),
    "E35": (
        "the site cannot cut the program off the network as its policy says; ask {contact}",
        "サイトがプログラムのネットワークを遮断できません。連絡先: {contact}",
    ),
    "refusal.unknown": (
        "the site refuses for a reason that this version does not know; ask {contact}",
        "このバージョンが認識できない理由でサイトが拒否しました。連絡先: {contact}",
    ),
    "E40": ("the gate there failed; ask {contact}", "ゲートで内部エラーが発生しました。連絡先: {contact}"),
    **SITE_MESSAGES,
    **LEGACY_MESSAGES,
    **MODULE_MESSAGES,
}


def say(key: str, **values: object) -> str:
    """The message `key` in the user's language; a refusal code that is not known here stands for itself."""
    if key not in MESSAGES:
        return key
    english, japanese = MESSAGES[key]
    shown = {name: _shorten(value) if isinstance(value, str) else value for name, value in values.items()}
    return (japanese if language() == "ja" else english).format(**shown)


def _shorten(text: str) -> str:
    """Somebody's word of any length leaves room for what the message says of it."""
    return text if len(text) <= MOST_SHOWN else f"{text[: MOST_SHOWN // 2]}…{text[-MOST_SHOWN // 2 :]}"
