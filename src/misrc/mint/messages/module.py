"""Messages about modules: their files, their scripts and the player, in English and Japanese (see `catalog`)."""

from __future__ import annotations

MODULE_MESSAGES: dict[str, tuple[str, str]] = {
    "module.error": ("error", "エラー"),
    "module.warning": ("warning", "警告"),
    "module.file": ("{path}: {why}", "{path} を処理できません: {why}"),
    "module.too_long": ("it is longer than 8 MiB", "8 MiBを超えています"),
    "module.good": (
        "{path}: good (modules: {count}, warnings: {warnings})",
        "{path}: 問題ありません (モジュール {count} 件、警告 {warnings} 件)",
    ),
    "module.bad": ("{path}: {errors} errors, {warnings} warnings", "{path}: エラー {errors} 件、警告 {warnings} 件"),
    "module.no_declaration": (
        "program '{program}' of site '{site}' has no 'module' in its declaration: nothing says how MInt shows it",
        "サイト '{site}' のプログラム '{program}' に 'module' の定義がありません",
    ),
    "module.no_ports": (
        "program '{program}' has no port for a result; declare 'ports'",
        "プログラム '{program}' に出力ポートがありません。'ports' を定義してください",
    ),
    "module.no_descriptor": (
        "the port '{port}' has no descriptor; write it under module.ports.{port}.descriptor",
        "ポート '{port}' に記述子がありません。module.ports.{port}.descriptor に書いてください",
    ),
    "module.text": (
        "a text of the declaration holds a character that XML cannot: {why}",
        "定義の文字列にXMLで使えない文字があります: {why}",
    ),
    "module.exists": (
        "{path} exists and differs; --force writes it over",
        "{path} は既にあり内容が異なります。--force で上書きします",
    ),
    "module.retired": ("{path}: {count} modules are deleted now", "{path}: モジュール {count} 件を削除済みにしました"),
    "module.retired_before": ("{path}: nothing to do, all are deleted", "{path}: すべて削除済みです"),
    "module.no_such": ("{path}: there is no module {id}", "{path} にモジュール {id} はありません"),
    "module.broken": (
        "{path}: it has errors, so it is left alone; see: misrc module check {path}",
        "{path} にエラーがあるため変更しません。misrc module check {path} で確認してください",
    ),
    # -- the module's script --
    "call.malformed": (
        "'{word}' is not the name of a port; after the program come pairs: --PORT FILE",
        "'{word}' はポート名ではありません。プログラムの後は --ポート名 ファイル の組を指定します",
    ),
    "call.no_file": ("the port '{port}' has no file after it", "ポート '{port}' のファイルが指定されていません"),
    "call.unknown": ("there is no port '{port}'; declared: {known}", "ポート '{port}' はありません。宣言済み: {known}"),
    "call.missing": (
        "the required port '{port}' is not given ({file})",
        "必須のポート '{port}' ({file}) が指定されていません",
    ),
    "call.folders": (
        "the outputs lie in different folders, and one is the run's working directory: {folders}",
        "出力先のフォルダが異なります。実行の作業フォルダは1つです: {folders}",
    ),
    "call.value": (
        "{path}: not one line of text of at most 4096 bytes (port '{port}')",
        "{path}: 4096バイト以内の1行の文字列ではありません (ポート '{port}')",
    ),
    "call.in_the_way": (
        "{path} lies where the input {port} belongs; use an empty working directory",
        "入力 {port} を置く場所に {path} があります。空の作業フォルダを使ってください",
    ),
    "call.no_result": (
        "there is no result for the port '{port}' ({file})",
        "ポート '{port}' の結果 ({file}) がありません",
    ),
    "call.stopped": ("stopped by MInt before or after the job", "ジョブの前または後の処理中に停止されました"),
    "step.missing": ("the command {command} cannot be started: {why}", "コマンド {command} を起動できません: {why}"),
    "step.failed": (
        "the command failed with status {status}: {command}",
        "コマンドが終了コード {status} で失敗しました: {command}",
    ),
    "solver_log.failed": (
        "the solver log {path} cannot be written: {why}",
        "ソルバーログ {path} に書き込めません: {why}",
    ),
    # -- the player --
    "play.begins": ("module {number}: {module}, in {folder}", "モジュール {number}: {module} ({folder})"),
    "play.no_script": (
        "there is no executable {path} for objectPath {object_path}; name the modules directory with --modules",
        "objectPath {object_path} の実行ファイル {path} がありません。--modules でモジュールフォルダを指定してください",
    ),
    "play.no_input": (
        "nothing is given for the required port '{port}' of '{module}'",
        "'{module}' の必須ポート '{port}' が指定されていません",
    ),
    "play.no_file": ("name at least one module file", "モジュールファイルを1つ以上指定してください"),
    "play.no_result": ("no module made the output '{port}'", "出力 '{port}' が作られませんでした"),
    "play.deleted": (
        "the module '{module}' is deleted: MInt does not run it",
        "モジュール '{module}' は削除済みのため、MIntでは実行されません",
    ),
    "play.folder": (
        "{path} is not empty; name another with --workdir",
        "{path} は空ではありません。--workdir で別のフォルダを指定してください",
    ),
    "play.failed": (
        "the module '{module}' ended with status {status}",
        "モジュール '{module}' が終了コード {status} で終了しました",
    ),
    "play.stopped": ("the workflow was stopped", "ワークフローを停止しました"),
    # -- the practice site --
    "practice.usage": (
        "name the program, its executable file, and the file of its declaration",
        "プログラム名、実行ファイル、定義ファイルを指定してください",
    ),
    "practice.root": (
        "the gate never runs as root; use an ordinary account",
        "ゲートはrootでは動作しません。一般アカウントで実行してください",
    ),
    "practice.program": ("{path} is no executable file", "{path} は実行可能なファイルではありません"),
    "practice.failed": ("{command} failed: {why}", "{command} が失敗しました: {why}"),
    "practice.up": (
        "the site '{site}' answers on this machine and runs '{program}'; now: . {env}",
        "練習用サイト '{site}' が '{program}' を実行できます。次を実行してください: . {env}",
    ),
    # -- the predecessor's words --
    "command.usage": (
        "'{word}': the words are client_name:HOST client_cmd:COMMAND client_files:FILE,FILE",
        "'{word}': client_name:ホスト client_cmd:コマンド client_files:ファイル,ファイル の形で指定してください",
    ),
    "command.site": (
        "{count} sites are declared with the id or address '{host}'; declared: {known}",
        "ID またはアドレスが '{host}' のサイトは {count} 件です。宣言済み: {known}",
    ),
    "command.arguments": (
        "{count} arguments are given, and the program has {most}",
        "引数が {count} 個ありますが、プログラムの引数は {most} 個です",
    ),
    # -- why a port or a path cannot be one --
    "why.empty": ("it is empty", "空です"),
    "why.long": ("it is longer than 255 bytes", "255バイトを超えています"),
    "why.hyphen": ("it begins with a hyphen", "ハイフンで始まっています"),
    "why.control": ("it holds a control character", "制御文字があります"),
    "why.space": ("it holds a space", "空白があります"),
    "why.slash": ("it holds a / or is . or ..", "/ を含むか、. または .. です"),
    "why.unsafe": ("it holds a character that a shell would read", "シェルが解釈する文字があります"),
    "why.relative": ("it does not begin with /", "/ で始まっていません"),
    "why.home": ("it begins with /home", "/home で始まっています"),
    "why.parts": ("it has an empty part, or . or .. as a part", "空の部分、または . や .. があります"),
    # -- what is wrong --
    "fault.syntax": (
        "this is not well-formed XML: {why} (column {column})",
        "XMLの構文が正しくありません: {why} ({column} 桁目)",
    ),
    "remedy.syntax": (
        "look at this line and the one before it: every element is closed, & is written &amp; and < is written &lt;",
        "この行と前の行を確認し、要素を閉じ、& は &amp;、< は &lt; と書いてください",
    ),
    "fault.prefix": (
        "a prefix is used that the file does not declare: {why}",
        "宣言のない接頭辞が使われています: {why}",
    ),
    "remedy.prefix": (
        'begin the file with <modules xmlns="http://www.example.com/predictionModuleSchema" '
        'xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">',
        'ファイルの先頭を <modules xmlns="http://www.example.com/predictionModuleSchema" '
        'xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"> としてください',
    ),
    "fault.encoding": (
        "the text is not in the encoding that the file names: {why}",
        "宣言された文字コードと内容が一致しません: {why}",
    ),
    "remedy.encoding": (
        'save the file as UTF-8, with <?xml version="1.0" encoding="UTF-8"?> as its first line',
        'UTF-8で保存し、1行目を <?xml version="1.0" encoding="UTF-8"?> としてください',
    ),
    "fault.doctype": (
        "the file declares a document type or entities, which are not taken",
        "文書型宣言または実体宣言は受け付けません",
    ),
    "remedy.doctype": (
        "remove the <!DOCTYPE …> and write its texts out",
        "<!DOCTYPE …> を削除し、内容を直接書いてください",
    ),
    "fault.root": ("the file begins with '{name}'", "ファイルが '{name}' で始まっています"),
    "remedy.root": ("a module file begins with <modules>", "モジュールファイルは <modules> で始めてください"),
    "fault.namespace": ("the namespace of <modules> is another one", "<modules> の名前空間が異なります"),
    "remedy.namespace": ('write <modules xmlns="{namespace}" …>', '<modules xmlns="{namespace}" …> と書いてください'),
    "fault.unclosed": (
        "<{name}> is not closed: </{other}> follows on line {last}",
        "<{name}> が閉じられていません ({last} 行目で </{other}> が現れます)",
    ),
    "remedy.unclosed": ("close it with </{name}>, in the same spelling", "同じ綴りの </{name}> で閉じてください"),
    "fault.ampersand": ("there is a bare &", "& がそのまま書かれています"),
    "remedy.ampersand": ("write &amp;", "&amp; と書いてください"),
    "remedy.missing_before": ("add <{missing}> before <{next}>", "<{next}> の前に <{missing}> を追加してください"),
    "fault.blanks": ("there is white space around the value '{value}'", "値 '{value}' の前後に空白があります"),
    "fault.port_place": ("a <port> does not stand here", "<port> の位置が正しくありません"),
    "remedy.port_place": (
        "move it into <inputPorts> or <outputPorts>",
        "<inputPorts> か <outputPorts> の中に移してください",
    ),
    "fault.both_groups": (
        "<pbsNodesGroup> is an older spelling of <pbsNodeGroup>, which is there too",
        "<pbsNodesGroup> は <pbsNodeGroup> の古い綴りで、両方が書かれています",
    ),
    "remedy.both_groups": ("remove <pbsNodesGroup>", "<pbsNodesGroup> を削除してください"),
    "fault.missing": ("<{missing}> is missing in <{name}>", "<{name}> に <{missing}> がありません"),
    "remedy.missing": ("add <{missing}>", "<{missing}> を追加してください"),
    "fault.unknown": ("<{name}> is not known", "<{name}> という要素はありません"),
    "remedy.unknown": ("remove it", "削除してください"),
    "remedy.spelling": ("write <{right}>", "<{right}> と書いてください"),
    "fault.order": ("<{name}> does not stand here", "<{name}> の位置が正しくありません"),
    "remedy.order": ("put <{missing}> before it", "<{missing}> を先に書いてください"),
    "fault.twice": ("<{name}> stands twice, first on line {first}", "<{name}> が二度あります (最初は {first} 行目)"),
    "remedy.twice": ("keep one of them", "どちらかを削除してください"),
    "fault.nil": ("<{name}> must have a value", "<{name}> には値が必要です"),
    "remedy.nil": ('write a value in place of xsi:nil="true"', 'xsi:nil="true" の代わりに値を書いてください'),
    "fault.nil_content": ("<{name}> is nil and has a content", "<{name}> は nil なのに内容があります"),
    "remedy.nil_content": ('remove the content, or xsi:nil="true"', '内容か xsi:nil="true" を削除してください'),
    "fault.attribute": (
        "<{name}> has an attribute '{attribute}', which is not known",
        "<{name}> に属性 '{attribute}' はありません",
    ),
    "remedy.attribute": ("remove it", "削除してください"),
    "fault.text": ("there is text between the elements of <{name}>", "<{name}> の要素の間に文字があります"),
    "remedy.text": ("remove it, or put it into an element", "削除するか、要素の中に入れてください"),
    "fault.schema": ("{why}", "スキーマに合いません: {why}"),
    "remedy.schema": (
        "see modulesxml/predictionModuleSchema.xsd",
        "modulesxml/predictionModuleSchema.xsd を参照してください",
    ),
    "fault.value": ("the value '{value}' is not allowed", "値 '{value}' は使用できません"),
    "remedy.identifier": (
        "write P and 15 digits, as MInt gave it; in a file that is to be registered leave the element out",
        "MIntが付与した P と15桁の数字とし、登録前のファイルでは要素を省いてください",
    ),
    "remedy.title": ("write a title", "題名を書いてください"),
    "remedy.date": ("write a day of the calendar, as YYYY-MM-DD", "実在する日付を YYYY-MM-DD の形で書いてください"),
    "remedy.creator_id": ("write 15 or 16 digits", "15桁または16桁の数字としてください"),
    "remedy.model": ("write M and 15 digits", "M と15桁の数字としてください"),
    "remedy.truth": ("write true or false", "true か false としてください"),
    "remedy.version": ("write three numbers with points, as 1.0.2", "1.0.2 のように3つの数を点で区切ってください"),
    "remedy.object_path": (
        "write the path of the module's script below MInt's modules directory, with a leading /",
        "MIntのモジュールフォルダから見たスクリプトのパスを / から書いてください",
    ),
    "remedy.cores": ("write a whole number from 1", "1以上の整数としてください"),
    "remedy.port_name": ("write the port's name", "ポート名を書いてください"),
    "remedy.descriptor": ("write D and 15 digits", "D と15桁の数字としてください"),
    "remedy.type": ("write file", "file としてください"),
    "remedy.depth": ("write 0", "0 としてください"),
    # -- rules --
    "fault.same_module": (
        "{id} version {version} stands twice, first on line {first}",
        "{id} のバージョン {version} が二度あります (最初は {first} 行目)",
    ),
    "remedy.same_module": ("raise the version of one, or remove it", "一方のバージョンを上げるか削除してください"),
    "fault.no_deleted": ("it is not said whether the module is deleted", "deleted が書かれていません"),
    "remedy.no_deleted": (
        "write <deleted>false</deleted> after <predictionModel>",
        "<predictionModel> の後に <deleted>false</deleted> を書いてください",
    ),
    "fault.no_creator_id": ("there is no <creatorId>", "<creatorId> がありません"),
    "remedy.no_creator_id": (
        "write the creator's number after <dc:creator>",
        "<dc:creator> の後に作成者の番号を書いてください",
    ),
    "fault.path": ("the path is not good: {why}", "パスが正しくありません: {why}"),
    "remedy.path": (
        "write the path below MInt's modules directory, as {better}",
        "モジュールフォルダから見たパスを {better} のように書いてください",
    ),
    "fault.old_group": ("<pbsNodesGroup> is an older spelling", "<pbsNodesGroup> は古い綴りです"),
    "remedy.old_group": ("write <pbsNodeGroup>", "<pbsNodeGroup> と書いてください"),
    "fault.node_group": ("'{value}' cannot talk to a site", "'{value}' からはサイトに接続できません"),
    "remedy.node_group": (
        "write {wanted}, the only node that may; for a module that uses no site check with --local",
        "外部に接続できる {wanted} としてください。サイトを使わないモジュールは --local を付けて検査してください",
    ),
    "fault.queue": ("the queue '{value}' decides nothing at the site", "キュー '{value}' はサイトでは無効です"),
    "remedy.queue": (
        "leave it nil: the site's own batch system decides",
        "nil としてください。サイト側のバッチシステムが決めます",
    ),
    "fault.cores": ("the number of cores decides nothing at the site", "コア数の指定はサイトでは無効です"),
    "remedy.cores_site": (
        "write 1: the site's own batch system decides",
        "1 としてください。サイト側のバッチシステムが決めます",
    ),
    "fault.cores_order": ("it is smaller than the number before it", "前の値より小さくなっています"),
    "remedy.cores_order": (
        "pbsMinCores ≤ pbsBaseCores ≤ pbsMaxCores",
        "pbsMinCores ≤ pbsBaseCores ≤ pbsMaxCores としてください",
    ),
    "fault.no_outputs": ("there is no output port", "出力ポートがありません"),
    "remedy.no_outputs": (
        "add a <port>: a module without a result cannot be part of a workflow",
        "結果のないモジュールはワークフローに使えません。<port> を追加してください",
    ),
    "fault.port_name": ("'{value}' cannot be a port: {why}", "ポート名 '{value}' は使用できません: {why}"),
    "remedy.port_words": (
        "a port's name becomes a word of a command (--NAME FILE); use letters, digits and _",
        "ポート名はコマンドの語 (--名前 ファイル) になります。文字・数字・_ を使ってください",
    ),
    "fault.combining": ("'{value}' is written with combining characters", "'{value}' が結合文字で書かれています"),
    "remedy.combining": ("write it composed (NFC), as keyboards do", "合成済みの文字 (NFC) で書いてください"),
    "fault.same_port": (
        "the port '{value}' stands twice, first on line {first}",
        "ポート '{value}' が二度あります (最初は {first} 行目)",
    ),
    "remedy.same_port": (
        "inputs and outputs of a module all have different names",
        "入力と出力のすべてのポートに異なる名前を付けてください",
    ),
    "fault.output_required": ("an output is neither required nor optional", "出力ポートに required は指定できません"),
    "remedy.output_required": ('write <required xsi:nil="true"/>', '<required xsi:nil="true"/> と書いてください'),
    "fault.no_required": ("it is not said whether '{value}' is required", "'{value}' の required が書かれていません"),
    "remedy.no_required": (
        "write <required>true</required> or false",
        "<required>true</required> か false を書いてください",
    ),
}
