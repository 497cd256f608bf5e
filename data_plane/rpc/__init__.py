"""The data plane on the wire: worker frames, the stream to the control plane, the sealed inference service.

Generated protobuf code is used in here and nowhere else in the data plane.
"""
