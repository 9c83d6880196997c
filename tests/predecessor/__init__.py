"""The predecessor's two clients and its server, written from the description of its protocol, with all their faults.

They are test doubles: ours must live with them as they are, so nothing here is to be mended, and nothing here uses
misrc. Only the waiting times are parameters.
"""
