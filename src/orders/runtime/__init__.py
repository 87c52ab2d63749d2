"""What every process needs to run, whatever it does.

settings       the settings of each process, read once from the environment
setting_files  settings from files
process        log lines, signals, and the one line of a process that cannot start
http_server    uvicorn, and a stop that drops no request
timeouts       how long each step may take, so that their sum keeps the promise
backoff        the length of one pause between tries
retry_pauses   such pauses, one after the other
crash          the end of a process whose background task crashed
"""
