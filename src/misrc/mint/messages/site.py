"""Messages of the commands around a site's life, in English and Japanese; `catalog` has all others, and `say`."""

from __future__ import annotations

SITE_MESSAGES: dict[str, tuple[str, str]] = {
    # -- options and keys --
    "option.missing": (
        "{option} is missing, and nobody can be asked here; give it",
        "{option} がありません。端末がないため質問できません。オプションで指定してください",
    ),
    "option.file": ("{option} {path}: {why}", "{option} {path}: 読み込めません: {why}"),
    "option.value": ("{option}: {why}", "{option}: 値が不正です: {why}"),
    "option.key": (
        "{option}, line {number}: {why}; a line of an ssh_host_ed25519_key.pub is needed",
        "{option} の {number} 行目: {why}。ssh_host_ed25519_key.pub の行が必要です",
    ),
    "key.unusable": (
        "{path}: cannot be used as a job key: {why} (an ssh-ed25519 key without a passphrase is needed)",
        "{path}: ジョブ鍵として使用できません: {why} (パスフレーズなしの ssh-ed25519 鍵が必要です)",
    ),
    "key.exists": (
        "{path}: a key lies there already, and keys are never written over",
        "{path}: 鍵が既にあります。鍵は上書きされません",
    ),
    "key.busy": ("{path}: another command changes this key now", "{path}: 別のコマンドがこの鍵を変更中です"),
    # -- survey --
    "survey.open": (
        "{count} questions of the survey sheet are open; they are listed at its end",
        "実装調査書に未定事項が {count} 件あります。末尾の一覧を確認してください",
    ),
    # -- add --
    "ask.address": ("Host name or address of the site", "サイトのホスト名またはアドレス"),
    "ask.port": ("Port of its sshd", "sshd のポート"),
    "ask.user": ("Account with the gate", "ゲートのアカウント"),
    "ask.host_key": (
        "Host key of the site (the line of ssh_host_ed25519_key.pub)",
        "サイトのホスト鍵 (ssh_host_ed25519_key.pub の行)",
    ),
    "ask.jump_host_key": (
        "Host key of the jump host (the line of ssh_host_ed25519_key.pub)",
        "踏み台のホスト鍵 (ssh_host_ed25519_key.pub の行)",
    ),
    "ask.programs": ("Programs, separated by spaces", "プログラム名 (空白区切り)"),
    "ask.api_user": (
        "User of the API server whose jobs the site's agent takes",
        "サイトのエージェントが扱うAPI利用者名",
    ),
    "add.done_api": ("Declared in {path}.", "{path} に定義しました。"),
    "add.dry_api": ("Nothing was written. It would be declared in {path}.", "何も書き込んでいません。定義先: {path}"),
    "add.tokens": (
        "On the API server's host, the tokens: the first for the site's administrator, the second for MInt's node "
        "(a server set up by hand: 'misrc token add --config FILE' in place of 'misrc-api token add'):",
        "APIサーバーのホストでトークンを発行してください (上はサイト管理者用、下はMIntノード用。"
        "手作業で構築したサーバーでは 'misrc-api token add' の代わりに 'misrc token add --config FILE' を使います):",
    ),
    "add.id": (
        "'{site}' is not a site id: lower-case letters, digits and '-', at most 32, beginning with a letter",
        "'{site}' はサイトIDとして使えません: 英小文字で始まる英小文字・数字・'-' の32文字以内",
    ),
    "add.declared": (
        "site '{site}' is declared already in {path}; nothing was changed",
        "サイト '{site}' は {path} に既に定義されています。何も変更していません",
    ),
    "add.retired": (
        "the id '{site}' belonged to a site that was retired ({path}), and ids are never used again; take another one",
        "ID '{site}' は廃止済みのサイトのものです ({path})。IDは再利用できません。別のIDを使用してください",
    ),
    "add.done": (
        "Declared in {path}. The private key stays here: {identity}",
        "{path} に定義しました。秘密鍵はここに残ります: {identity}",
    ),
    "add.dry": (
        "Nothing was written. It would be declared in {path}, with the private key {identity}",
        "何も書き込んでいません。定義先: {path}、秘密鍵: {identity}",
    ),
    "add.key_later": ("(the key is made when the site is added)", "(鍵はサイトの追加時に作成されます)"),
    "add.send": ("The public key, for the site's administrator:", "サイト管理者に渡す公開鍵:"),
    "add.policy_entry": ("As an entry of job_keys in the site's policy:", "サイトのポリシーの job_keys に加える項目:"),
    "add.sources": ("MInt comes from: {sources}", "MIntの接続元: {sources}"),
    "add.no_source": (
        "not given (--from); tell the site, so that it can limit the key to it",
        "未指定 (--from)。サイトが鍵の使用元を制限できるよう伝えてください",
    ),
    "add.interface": ("What MInt declares of the site:", "MIntが定義したサイトの内容:"),
    "add.install": (
        "Send misrc-site.pyz ('misrc site build' makes it), and its SHA-256 by another way. "
        "The site's administrator writes the policy and runs:",
        "misrc-site.pyz ('misrc site build' で作成) を送り、そのSHA-256を別の経路で伝えてください。"
        "サイト管理者はポリシーを作成して実行します:",
    ),
    "add.open_program": (
        "A program without a FILE takes any input and returns any output that the site's policy lets pass, "
        "and has no arguments.",
        "FILE のないプログラムは、サイトのポリシーが許すすべての入力と出力を受け渡し、引数を持ちません。",
    ),
    # -- show --
    "show.mint": ("MInt's side", "MInt側"),
    "show.site": ("the site", "サイト側"),
    "show.no_policy": (
        "without --policy FILE, the site's lines carry MInt's own key only, without source networks and last day",
        "--policy FILE がないため、サイト側の行はMIntの鍵だけで、接続元と期限を含みません",
    ),
    "show.weaker": (
        "In what a user install is weaker than a root install:",
        "ユーザーインストールがrootインストールより弱い点:",
    ),
    "weaker.account": (
        "Gate, programs, policy and ledger share one account: it protects the site from MInt, not from that account.",
        "ゲート・プログラム・ポリシー・台帳が同じアカウントにあり、MIntからは守りますが、そのアカウント自身からは守りません。",
    ),
    "weaker.ledger": (
        "A program that the site allows could rewrite the ledger; only checkpoints kept at MInt would show it.",
        "許可されたプログラムは台帳を書き換えられます。それを示すのはMIntが保持するチェックポイントだけです。",
    ),
    "weaker.other_jobs": (
        "A program can read and change the files of other jobs.",
        "プログラムは他のジョブのファイルを読み書きできます。",
    ),
    "weaker.limits": (
        "Memory is limited per process and processes per account; a job has no disk quota.",
        "メモリはプロセス単位、プロセス数はアカウント単位の制限で、ジョブごとのディスク割り当てはありません。",
    ),
    "weaker.processes": (
        "Cancel finds processes by parents and environment, not by a cgroup: one that hides can stay.",
        "キャンセルはcgroupでなく親子関係と環境変数でプロセスを探すため、隠れたものは残りえます。",
    ),
    "weaker.sshd": (
        "Key file and sshd settings: the account can change its own authorized_keys, and the host's sshd is as it is.",
        "アカウントは自分の authorized_keys を変更でき、sshd の設定はホスト任せです。",
    ),
    "weaker.network": (
        "A program is cut off the network only where the kernel lets an ordinary account do that; else it does not start.",
        "ネットワーク遮断は一般アカウントに許すカーネルでのみ可能で、それ以外では起動しません。",
    ),
    "weaker.deletion": (
        "Jobs are deleted only by the account itself; no timer of the system sees to it.",
        "ジョブの削除はアカウント自身によるもので、システムのタイマーは使いません。",
    ),
    # -- check: what is looked at --
    "probe.agreement": ("the agreement has not ended", "利用期限内"),
    "probe.host_key": ("the host key is a pinned one", "ホスト鍵が宣言と一致"),
    "probe.host_keys": ("another host key is pinned for a change", "交代用のホスト鍵"),
    "probe.job_key": ("the job key is accepted", "ジョブ鍵の受け入れ"),
    "probe.gate": ("the gate answers hello", "ゲートの応答 (hello)"),
    "probe.server": ("the API server takes MInt's token", "APIサーバーのトークン受け入れ"),
    "probe.receipts": ("the site's receipts can be checked", "サイトの受領証の検証鍵"),
    "probe.signing": ("MInt's signing key is there", "MIntの署名鍵"),
    "probe.site_id": ("the gate has this site's id", "サイトIDの一致"),
    "probe.misrc": ("misrc's version", "misrcのバージョン"),
    "probe.python": ("Python's version", "Pythonのバージョン"),
    "probe.rsync": ("rsync's version", "rsyncのバージョン"),
    "probe.clock": ("clocks agree", "時計の一致"),
    "probe.space": ("free space", "空き容量"),
    "probe.programs": ("the site offers the declared programs", "宣言したプログラムの提供"),
    "probe.ledger": ("the ledger is not shorter than it was", "台帳の長さ"),
    "probe.shell": ("refused: a shell", "拒否: シェル"),
    "probe.command": ("refused: another command", "拒否: 別のコマンド"),
    "probe.sftp": ("refused: sftp", "拒否: sftp によるファイル操作"),
    "probe.scp": ("refused: scp", "拒否: scp によるコピー"),
    "probe.local": ("refused: local port forwarding", "拒否: ローカルポート転送"),
    "probe.remote": ("refused: remote port forwarding", "拒否: リモートポート転送"),
    "probe.dynamic": ("refused: dynamic port forwarding", "拒否: ダイナミックポート転送"),
    "probe.stream_local": ("refused: forwarding to a Unix socket there", "拒否: サイト側Unixソケットへの転送"),
    "probe.stream_remote": ("refused: forwarding from a Unix socket there", "拒否: サイト側Unixソケットからの転送"),
    "probe.agent": ("refused: agent forwarding", "拒否: エージェント転送"),
    "probe.x11": ("refused: X11 forwarding", "拒否: X11転送"),
    "probe.tunnel": ("refused: a network tunnel", "拒否: ネットワークトンネル"),
    "probe.pty": ("refused: a terminal", "拒否: 端末 (pty)"),
    "probe.environment": ("refused: the request out of the environment", "拒否: 環境変数による要求"),
    "probe.locale": ("refused: LC_* out of the environment", "拒否: 環境変数 LC_*"),
    "probe.rc": ("refused: the account's ~/.ssh/rc", "拒否: ~/.ssh/rc の実行"),
    "probe.program": ("refused: an unknown program", "拒否: 未合意のプログラム"),
    "probe.other_job": ("refused: another job's id", "拒否: 他のジョブのID"),
    "probe.traversal": ("refused: a name that leads out of the folder", "拒否: フォルダ外を指す名前"),
    # -- check: what was found --
    "note.refused": ("by {how}", "{how} による拒否"),
    "note.dead": (
        "it cannot be judged: 'hello' is not answered on the same connection",
        "同じ接続で hello に応答がないため判定できません",
    ),
    "note.carried_out": ("it was carried out", "実行されました"),
    "note.granted": ("it was granted", "許可されました"),
    "note.accept_env": ("sshd took the variable (AcceptEnv)", "sshdが変数を受け入れました (AcceptEnv)"),
    "note.line_allows": ("the key's line allows it", "authorized_keys の行が許可しています"),
    "note.not_the_gate": (
        "not the gate's refusal: exit status {status}, {why}",
        "ゲートの拒否ではありません: 終了コード {status}、{why}",
    ),
    "note.no_answer": ("no answer: {why}", "応答がありません: {why}"),
    "note.not_tried": ("ssh here did not try it", "こちらのsshが試行しませんでした"),
    "note.forwarded": ("sshd did not refuse: {why}", "sshdが拒否しませんでした: {why}"),
    "note.channel_open": ("the channel was opened", "チャネルが開かれました"),
    "note.no_device": (
        "no network device can be made here (root can)",
        "こちらでネットワークデバイスを作成できません (rootのみ可能)",
    ),
    "note.silent": ("sshd does not tell", "sshdが情報を示しません"),
    "note.otherwise": ("refused as {code}, which says nothing of this", "{code} で拒否され、この項目は判定できません"),
    "note.locale": (
        "nothing that MInt may run shows it; look at AcceptEnv at the site",
        "MIntから確認する手段がありません。サイトの AcceptEnv を確認してください",
    ),
    "note.no_port": (
        "the site opens no port, so MInt can try nothing there; at the site 'misrc-site.pyz agent --check' says how it stands",
        "サイトはポートを開いていないため試せません。サイト側の 'misrc-site.pyz agent --check' で確認してください",
    ),
    "note.no_receipt_keys": (
        "no receipt_keys are declared: whoever holds the API server could make up results",
        "receipt_keys が宣言されていません。APIサーバーを掌握した者が結果を偽造できます",
    ),
    "note.not_connected": ("there is no connection", "接続がありません"),
    "note.key_refused": ("the site does not take it", "サイトが受け付けません"),
    "note.other_host_key": (
        "the site shows {shown}, which is not declared; nothing was sent",
        "サイトが宣言にない鍵 {shown} を示しました。何も送信していません",
    ),
    "note.host_key": ("{shown} (number {number} of {count} pinned)", "{shown} (宣言 {count} 件中 {number} 番目)"),
    "note.last_host_key": (
        "only one is pinned: before the site changes it, declare the next one too",
        "宣言は1件だけです。サイトが鍵を交代する前に次の鍵も宣言してください",
    ),
    "note.other_pins": ("pinned and not shown now: {others}", "宣言済みで今回示されなかった鍵: {others}"),
    "note.new_key": (
        "{shown}, the new one: 'misrc site rotate --finish' can follow",
        "{shown} (新しい鍵): 'misrc site rotate --finish' を実行できます",
    ),
    "note.old_key": (
        "{shown}, the old one: the site does not take the new one yet",
        "{shown} (古い鍵): サイトは新しい鍵をまだ受け付けません",
    ),
    "note.site_id": ("it says '{found}'", "応答のIDは '{found}' です"),
    "note.versions": ("{there} there, {here} here", "サイト {there}、こちら {here}"),
    "note.version": ("'{found}' is no version", "'{found}' はバージョンではありません"),
    "note.floor": ("{found}; {floor} or later is needed", "{found}。{floor} 以降が必要です"),
    "note.clock": ("{skew} s, give or take {error} s", "差 {skew} 秒 (誤差 {error} 秒)"),
    "note.free": ("{free}", "{free}"),
    "note.programs": ("not offered: {missing}", "提供されていません: {missing}"),
    "note.no_checkpoint": ("the gate did not name its ledger's last line", "台帳の最終行が示されませんでした"),
    "note.checkpoint": (
        "line {seq}; the last one that a job told is {known}",
        "{seq} 行目 (ジョブで得た最終行 {known})",
    ),
    "note.ledger_cut": (
        "the ledger was shortened or rewritten: {note}; ask the site",
        "台帳が短縮または書き換えられています: {note}。サイトに確認してください",
    ),
    "note.no_end": ("no last day is declared", "期限の宣言はありません"),
    "note.ended": ("it ended on {day}", "{day} に終了しました"),
    "note.ends": ("it ends on {day}, in {days} days", "{day} に終了します (あと {days} 日)"),
    # -- rotate --
    "rotate.begun": (
        "{site}: both keys are used now; the old one until {until}",
        "{site}: 新旧両方の鍵を使用します。古い鍵は {until} まで有効です",
    ),
    "rotate.policy": (
        "The site's administrator puts these into job_keys (keeping `from`) and installs again:",
        "サイト管理者は job_keys を次のようにして (`from` は維持)、再度インストールします:",
    ),
    "rotate.next": (
        "Then: misrc site check {site}; misrc site rotate {site} --finish",
        "その後: misrc site check {site}; misrc site rotate {site} --finish を実行してください",
    ),
    "rotate.webapi": (
        "{site} is reached through the API server and has no job key: give it a new token there, and put MInt's own into {path}",
        "{site} はAPIサーバー経由のためジョブ鍵はありません。APIサーバーで新しいトークンを発行し、MInt側は {path} に置いてください",
    ),
    "rotate.not_taken": (
        "{site} does not accept the new key yet, and the old one stays in use; the site first installs the policy with "
        "both keys, as 'misrc site rotate {site}' shows them",
        "{site} は新しい鍵をまだ受け付けません。古い鍵を引き続き使います。"
        "サイト管理者は、先に 'misrc site rotate {site}' の示す2つの鍵をポリシーに入れてインストールします",
    ),
    "rotate.none": (
        "{site}: no change of keys is under way; the job key is {present}",
        "{site}: 進行中の鍵の交代はありません。現在のジョブ鍵: {present}",
    ),
    "rotate.finished": (
        "{site}: the job key is {new} now; the site's administrator takes {old} out of job_keys",
        "{site}: ジョブ鍵は {new} になりました。サイト管理者は {old} を job_keys から削除します",
    ),
    "rotate.aborted": (
        "{site}: the old key stays; the new one, {new}, is destroyed: the site must not take it",
        "{site}: 古い鍵を継続します。新しい鍵 {new} は破棄しました。サイトは登録しないでください",
    ),
    # -- retire --
    "retire.jobs": (
        "{site} has {count} unfinished jobs: {jobs}; fetch them, or give --force to cancel them first",
        "{site} には未完了のジョブが {count} 件あります: {jobs}。取得するか、--force で先にキャンセルしてください",
    ),
    "retire.done": (
        "{site} is retired: its private key is destroyed, the record is in {folder}",
        "{site} を廃止しました。秘密鍵は破棄し、記録は {folder} にあります",
    ),
    "retire.checkpoint": (
        "The site's ledger ends with line {seq}, hash {hash}",
        "サイトの台帳の最終行は {seq}、ハッシュ {hash} です",
    ),
    "retire.checkpoint_old": (
        "The site could not be asked; the last line of its ledger that a job told is {seq}, hash {hash}",
        "サイトに問い合わせできませんでした。ジョブで得た台帳の最終行は {seq}、ハッシュ {hash} です",
    ),
    "retire.left": (
        "{count} job(s) could not be ended; their records stay as they are: {jobs}",
        "{count}件のジョブは終了を確認できませんでした。記録はそのまま残ります: {jobs}",
    ),
    "retire.admin": (
        "The site's administrator keeps the ledger and removes: job_keys with {fingerprints}; "
        "the gate's lines in authorized_keys; the installation of '{site}' with its work root; its account",
        "サイト管理者は台帳を保管し、次を削除します: job_keys の {fingerprints}、authorized_keys のゲートの行、"
        "'{site}' のインストールと作業フォルダ、アカウント",
    ),
}
